"""How parameters are listed: ten by name, more by submodule, and never a screen full."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gradguard._core.text import one_line

MOST_LINES = 25
MOST_ENTRIES = 10

Names = tuple[str, ...]  # of one parameter; a tied one has several


class Section(NamedTuple):
    """One kind of finding within a message.

    Attributes:
        heading: what is wrong.
        found: what it is wrong with.
        every: all that it could be wrong with: a submodule that has all of its own among the
            found is "wholly affected".
        todo: what to do about it.
        noun: what they are.

    """

    heading: str
    found: Sequence[Names]
    every: Sequence[Names]
    todo: str
    noun: str = "parameters"


def listed(first: Sequence[str], sections: Iterable[Section]) -> str:
    """Write the sections that found something below the first lines, in at most `MOST_LINES`."""
    sections = [section for section in sections if section.found]
    room = (MOST_LINES - len(first) - 2 * len(sections)) // len(sections)
    lines = list(first)
    for section in sections:
        lines.append(f"{section.heading} ({len(section.found)}):")
        lines += (f"  {row}" for row in packed(entries(section), room))
        lines.append(f"  To do: {section.todo}")
    return "\n".join(lines)


def entries(section: Section) -> list[str]:
    """Name up to ten in full; of more, whole submodules, the largest first; and count the rest."""
    if len(section.found) <= MOST_ENTRIES:
        return [_with_ties(names) for names in section.found]
    grouped = group([names[0] for names in section.found], [names[0] for names in section.every])
    shown = grouped.most_common(MOST_ENTRIES)
    words = [name if count == 1 else f"{name} ({count} {section.noun})" for name, count in shown]
    left = len(section.found) - sum(count for _, count in shown)
    return [*map(one_line, words), *([f"and {left} more"] if left else [])]


def group(found: Sequence[str], every: Iterable[str]) -> Counter[str]:
    """Replace the names by `submodule.*` where all of that submodule is found, outermost first."""
    have = Counter(prefix for name in every for prefix in prefixes(name))
    hit = Counter(prefix for name in found for prefix in prefixes(name))
    whole = {prefix for prefix, count in hit.items() if count > 1 and count == have[prefix]}
    return Counter(
        next((f"{prefix}*" for prefix in prefixes(name) if prefix in whole), name) for name in found
    )


def prefixes(name: str) -> Iterator[str]:
    """Yield what the names of a submodule's parameters begin with: "", "a.", "a.b." of "a.b.c"."""
    yield ""
    yield from (name[: at + 1] for at, character in enumerate(name) if character == ".")


def packed(words: Sequence[str], rows: int) -> list[str]:
    """Lay words out in at most so many rows: one a row if they fit."""
    each = -(-len(words) // rows)
    return [", ".join(words[at : at + each]) for at in range(0, len(words), each)]


def _with_ties(names: Names) -> str:
    first, *others = names
    if not others:
        return one_line(first)
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return one_line(f"{first} (tied: {others[0]}{more})")
