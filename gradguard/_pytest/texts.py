"""What the pytest plugin says: its help, its header, and each leak that it reports."""

import re
from collections.abc import Sequence

from gradguard._core.text import one_line

HELP = (
    "What to do about a test or fixture that leaves the grad mode changed: %s. The mode is put "
    "back in any case, unless it is off."
)
MARKER = (
    "leaks_grad_mode(reason=...): this test leaves the grad mode changed on purpose; gradguard "
    "puts it back and says nothing."
)
_XUNIT = re.compile(r"_(?:xunit|unittest)_(\w+?)_fixture_(.*)")
_FLAGS = ("grad mode", "inference mode")
_MARK = '@pytest.mark.leaks_grad_mode(reason="...")'
_UNSEEN = (
    "What switched it was not seen: a direct call of torch._C, C++, or a compiled function. Put "
    "`with gradguard.trace() as switches:` around the suspected part and print(switches)."
)
_FIRST_IMPORT = (
    "What switched it was not seen, as torch was imported only meanwhile. Import it at the top of "
    "the test file to have the line named."
)


def help_text(modes: Sequence[str]) -> str:
    return HELP % ", ".join(modes)


def bad_mode(value: str, setting: str, modes: Sequence[str]) -> str:
    return f"{setting} = {one_line(value)!r} is not one of {', '.join(modes)}."


def header(mode: str) -> str:
    return f"gradguard: mode={mode}"


def fixture_name(name: str, scope: str) -> str:
    """Name a fixture, or what pytest makes one of: setup_method and the like."""
    xunit = _XUNIT.fullmatch(name)
    if xunit:
        return f"{xunit[1]} (or its tear-down) of {one_line(xunit[2])}"
    return f"fixture {one_line(name)!r} (scope: {scope})"


def switched_at(where: str) -> str:
    return f"Switched at {where}"


def not_seen(*, torch_is_new: bool) -> str:
    """Say why there is no line: what makes it known was put into torch only afterwards, or cannot.

    Args:
        torch_is_new: whether torch was first imported meanwhile.

    """
    return _FIRST_IMPORT if torch_is_new else _UNSEEN


def leaked(
    who: str,
    before: tuple[bool, bool],
    after: tuple[bool, bool],
    *,
    fixture: bool,
    where: str,
    left_open: Sequence[str],
) -> str:
    """Say what was left, where it was switched, and what to do.

    Args:
        who: the test or the fixture.
        before: grad mode and inference mode when it began,
        after: and when it had ended.
        fixture: whether it is a fixture; one ends with its tear-down.
        where: what `switched_at` or `not_seen` says.
        left_open: gradguard's guards that were entered and never exited.

    """
    began = "before its set-up" if fixture else "when it began"
    ended = " after its tear-down" if fixture else ""
    changed = [(w, b, a) for w, b, a in zip(_FLAGS, before, after, strict=True) if b is not a]
    left = " and ".join(f"{what} {_on(now)}" for what, _, now in changed)
    was = " and ".join(f"{what} was {_on(then)}" for what, then, _ in changed)
    opened = f"Guards entered and never exited: {', '.join(map(one_line, left_open))}."
    lines = [
        f"{who} left {left}{ended}; {was} {began}.",
        *([opened] if left_open else []),
        where,
        _to_do(fixture),
        "The mode has been put back.",
    ]
    return "\n".join(lines)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _to_do(fixture: bool) -> str:
    if fixture:
        return (
            "To do: let the tear-down end what the set-up switches, as `with torch.no_grad(): "
            f"yield` does; where the leak is meant, mark the tests that use it {_MARK}."
        )
    return (
        "To do: switch the mode with `with` or a decorator, so that it ends there; where the leak "
        f"is meant, mark the test {_MARK}."
    )
