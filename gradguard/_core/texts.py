"""What a guard or a decorator says when it is used wrongly."""

from gradguard._core.text import one_line

_AS_DECORATOR = {
    "inference_mode": "inference_mode()",
    "set_grad_enabled": "set_grad_enabled(False)",
}
_USE_WITH = "Use `with`, which exits each guard in the block and the thread that entered it."


def out_of_order(closed: str, innermost: str) -> str:
    return (
        f"{closed} was exited while {innermost}, entered after it, is still open: {innermost} goes "
        f"on deciding the grad mode, and its exit brings back what {closed} found. Usual causes: a "
        "`with` block that spans a `yield` or an `await` (decorate the function instead, or use "
        f"gradguard.isolated), or __enter__ and __exit__ called by hand. {_USE_WITH}"
    )


def not_open(guard: str, open_guards: list[str]) -> str:
    listing = ", ".join(open_guards) if open_guards else "none"
    return (
        f"{guard} is not open in this thread (open here, outermost first: {listing}), so it cannot "
        "be exited; the mode is unchanged. It was never entered, was exited already, or was "
        f"entered in another thread. {_USE_WITH}"
    )


def mode_not_bool(guard: str, mode: str, kind: str) -> str:
    return (
        f"{guard}(mode) takes True or False, not {one_line(mode)} of type {kind}. To decorate a "
        f"function, write @{_AS_DECORATOR[guard]}."
    )


def cannot_decorate_class(guard: str, name: str) -> str:
    return (
        f"{guard} cannot decorate the class {name}: only its constructor would be covered. "
        f"Decorate the methods that need it, for example __init__ or forward, with {guard}."
    )


def cannot_decorate(guard: str, value: str, kind: str) -> str:
    return (
        f"{guard} cannot decorate {one_line(value)} of type {kind}, which is not callable. "
        "Decorate a function, a method, a classmethod, staticmethod or property, or an object "
        "with __call__; "
        f"to switch the mode for a block, write `with {guard}:`."
    )
