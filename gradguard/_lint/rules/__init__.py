"""The rules of `gradguard check`, one module a family."""

from gradguard._lint.rule import Rule
from gradguard._lint.rules.decorated import GuardOnAsync, GuardOnClass, GuardOrder
from gradguard._lint.rules.entered import ManualEnter
from gradguard._lint.rules.flags import FlagByHand, MisspelledFlag
from gradguard._lint.rules.frozen import FrozenModule
from gradguard._lint.rules.layers import FunctionalDropout, LayerInForward
from gradguard._lint.rules.lazy import GuardOnLazy
from gradguard._lint.rules.losses import KeptLoss, LossMadeLeaf
from gradguard._lint.rules.registering import UnregisteredLayers
from gradguard._lint.rules.statements import DiscardedResult, Uncalled, UnusedGuard
from gradguard._lint.rules.suspended import AwaitInGuard, YieldInGuard
from gradguard._lint.rules.unrecorded import BackwardOfUnrecorded, EnableInInference
from gradguard._lint.rules.unscoped import UnscopedSet

RULES: tuple[Rule, ...] = (
    GuardOnAsync(),
    AwaitInGuard(),
    YieldInGuard(),
    GuardOnLazy(),
    GuardOnClass(),
    GuardOrder(),
    UnusedGuard(),
    UnscopedSet(),
    ManualEnter(),
    EnableInInference(),
    BackwardOfUnrecorded(),
    Uncalled(),
    KeptLoss(),
    DiscardedResult(),
    FrozenModule(),
    MisspelledFlag(),
    FunctionalDropout(),
    LayerInForward(),
    FlagByHand(),
    UnregisteredLayers(),
    LossMadeLeaf(),
)
"""All rules, by code."""
