"""What all checks share: the clock, the modules and optimizers seen, and the ledger."""

from gradguard._core.state import is_grad_enabled, is_inference_mode_enabled
from gradguard._judge.ledger import Ledger
from gradguard._judge.modules import Modules
from gradguard._judge.optimizers import Optimizers


class Scene:
    """The state of a program as far as it was seen; times are ticks of one clock."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.modules = Modules()
        self.optimizers = Optimizers()
        self.clock = 0
        self.steps = 0
        self.forwards = 0
        self.backward_at = 0  # the last backward that gave gradients to leaves
        self.recorded_at = 0  # the last recorded forward in train mode
        self.zeroed_at = 0  # the last zero_grad of a module
        self.explained: set[int] = set()  # parameters of which is told why they do not learn
        self.stopped: set[int] = set()  # and those whose forward a buffer may stop, by what is told

    def tick(self) -> int:
        """Return a time later than all before."""
        self.clock += 1
        return self.clock


def is_recording() -> bool:
    """Tell whether operations are recorded in this thread."""
    return is_grad_enabled() and not is_inference_mode_enabled()
