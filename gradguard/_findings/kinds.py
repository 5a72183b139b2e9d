"""The names of all that gradguard finds; `select`, `ignore` and silencing comments take them."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

RUN_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "mode-leak": "The grad mode was left switched, and training went on in it.",
        "empty-step": "An optimizer step in which no trainable parameter has a gradient.",
        "no-gradient": "A trainable parameter that no optimizer step saw with a gradient.",
        "inference-tensor": "A parameter, buffer or optimizer state created in inference mode.",
        "stale-parameter": "An optimizer holds a parameter that another one has replaced.",
        "frozen-moves": "A frozen parameter that a gradient, momentum or decay still moves.",
        "eval-mode": "Optimizer steps on a model that was left in eval mode.",
        "train-mode-inference": "A forward under no_grad with Dropout or BatchNorm in train mode.",
        "unregistered": "A module that runs inside another's forward and is not registered there.",
        "no-effect": "A guard or a requires_grad that does nothing.",
        "recorded-eval": "A forward in eval mode that records a graph nobody uses.",
        "frozen-batchnorm": "A BatchNorm with frozen parameters that is back in train mode.",
        "kept-graph": "The graphs of earlier steps stay alive, ever more of them.",
    }
)
"""What `gradguard run` and the watches find, the worst first, with one sentence each."""

CHECK_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "GG001": "syntax-error",
        "GG002": "unused-ignore",
        "GG101": "guard-on-async",
        "GG102": "await-in-guard",
        "GG103": "yield-in-guard",
        "GG104": "guard-on-lazy",
        "GG105": "guard-on-class",
        "GG106": "guard-order",
        "GG107": "unused-guard",
        "GG108": "unscoped-set",
        "GG109": "manual-enter",
        "GG110": "enable-in-inference",
        "GG111": "backward-of-unrecorded",
        "GG112": "uncalled",
        "GG113": "kept-loss",
        "GG114": "discarded-result",
        "GG115": "frozen-module",
        "GG116": "misspelled-flag",
        "GG117": "functional-dropout",
        "GG118": "layer-in-forward",
        "GG119": "flag-by-hand",
        "GG120": "unregistered-layers",
        "GG121": "loss-made-leaf",
    }
)
"""What `gradguard check` finds: code and name. The first two are of the check itself."""

ALL = "ALL"


def names_of(word: str) -> frozenset[str]:
    """Return the names that a word of `select` or `ignore` stands for; none if it is unknown.

    >>> sorted(names_of("GG10"))[0], names_of("mode-leak"), names_of("nonsense")
    ('await-in-guard', frozenset({'mode-leak'}), frozenset())
    """
    if word == ALL:
        return frozenset({*RUN_KINDS, *CHECK_NAMES.values()})
    if word in RUN_KINDS or word in CHECK_NAMES.values():
        return frozenset({word})
    if not word.startswith("GG"):
        return frozenset()
    return frozenset(name for code, name in CHECK_NAMES.items() if code.startswith(word))


def unknown(word: str) -> str:
    """Say that a word names nothing, and what comes closest."""
    known = [ALL, *CHECK_NAMES, *CHECK_NAMES.values(), *RUN_KINDS]
    close = get_close_matches(word.upper(), known, 1) or get_close_matches(word.lower(), known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"{word!r} is no code, prefix or name of a check.{hint} "
        "`gradguard check --list` and `gradguard run --help` name them all."
    )


def expanded(words: Iterable[str]) -> frozenset[str]:
    """Return all names that the words stand for.

    Raises:
        ValueError: a word is unknown.
    """
    names: set[str] = set()
    for word in words:
        found = names_of(word)
        if not found:
            raise ValueError(unknown(word))
        names |= found
    return frozenset(names)
