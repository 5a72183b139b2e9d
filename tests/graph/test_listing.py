"""gradguard._graph.listing: how many names a message shows, and which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard._core.text import MOST_CHARACTERS, one_line
from gradguard._graph.listing import MOST_LINES, Section, entries, group, listed, packed


def one(*names):
    return [(name,) for name in names]


def layers(prefix, count):
    return [(f"{prefix}.{at}.{kind}",) for at in range(count // 2) for kind in ("weight", "bias")]


def test_up_to_ten_are_listed_in_full():
    """Ten parameters are named one by one, though they fill a submodule."""
    ten = layers("encoder", 10)
    assert entries(Section("", ten, ten, "")) == [name for (name,) in ten]


def test_beyond_ten_whole_submodules_stand_for_their_parameters():
    """A wholly affected submodule is one entry with its number, the outermost that is whole."""
    encoder, head = layers("encoder", 400), layers("head", 4)
    section = Section("", [*encoder, head[0]], [*encoder, *head], "")
    assert entries(section) == ["encoder.* (400 parameters)", "head.0.weight"]


def test_everything_affected_is_one_entry():
    """When all is found, the root stands for it, as the glob that matches it."""
    every = [*layers("a", 10), *layers("b", 10)]
    assert entries(Section("", every, every, "", noun="buffers")) == ["* (20 buffers)"]


def test_submodule_with_one_parameter_is_named_in_full():
    """A group of one would hide a name and save nothing."""
    every = one(*(f"{at}.weight" for at in range(12)), "12.bias")
    assert entries(Section("", every[:12], every, ""))[:2] == ["0.weight", "1.weight"]


def test_what_does_not_fit_is_counted():
    """At most ten entries are shown, the largest first, and the parameters left are counted."""
    every = [*one(*(f"x{at}.bias" for at in range(30)), "y"), *layers("big", 20)]
    section = Section("", [*every[:30], *every[31:]], every, "")
    shown = entries(section)
    assert shown[0] == "big.* (20 parameters)"
    assert shown[-1] == "and 21 more"
    assert len(shown) == 11


def test_tied_names_are_shown_with_the_first():
    """A tied parameter shows another of its names, and how many further ones there are."""
    tied = [("a", "b"), ("c", "d", "e", "f")]
    assert entries(Section("", tied, tied, "")) == ["a (tied: b)", "c (tied: d and 2 more)"]


@given(st.sets(st.text(".ab", min_size=1), max_size=40), st.data())
def test_groups_stand_for_exactly_the_found(every, data):
    """Whatever the names, each group stands for its own found parameters and no others."""
    every = sorted(every)
    found = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    grouped = group(found, every)
    assert sum(grouped.values()) == len(found)
    for entry, count in grouped.items():
        if count > 1:
            assert sum(name.startswith(entry[:-1]) for name in every) == count


def test_sections_that_found_nothing_are_left_out():
    """Only what is wrong is in the message, each with its number and what to do."""
    text = listed(
        ["first"], [Section("empty", [], one("x"), "nothing"), Section("bad", one("x"), [], "fix")]
    )
    assert text.splitlines() == ["first", "bad (1):", "  x", "  To do: fix"]


def test_names_with_line_ends_in_groups():
    """Names that hold line ends stay one entry, one line, beyond ten as well."""
    every = layers("a\nb", 24)
    shown = entries(Section("", every[1:], every, ""))
    assert shown[0].startswith("a\\nb.1.* (2")
    assert all(len(entry.splitlines()) == 1 for entry in shown)


@given(
    st.lists(st.lists(st.text(min_size=1), min_size=1, max_size=60), min_size=1, max_size=4),
    st.integers(1, 2),
)
def test_any_message_has_at_most_25_lines(found, lines):
    """Whatever and however much was found, a message is never longer than 25 lines."""
    sections = [Section("h", one(*names), one(*names), "t") for names in found]
    text = listed(["first"] * lines, sections)
    assert len(text.splitlines()) <= MOST_LINES


def test_rows_hold_several_names_only_when_they_must():
    """One name a row while there is room, then as few a row as will do."""
    assert packed(["a", "b", "c"], 3) == ["a", "b", "c"]
    assert packed(["a", "b", "c"], 2) == ["a, b", "c"]


@pytest.mark.parametrize("text", ["a\nb", "x" * 1000, "a\r\u2028b"])
def test_a_name_is_one_line_of_sensible_length(text):
    """Line ends in a name are written out, and the middle of a long one is left out."""
    line = one_line(text)
    assert len(line.splitlines()) == 1
    assert len(line) <= MOST_CHARACTERS + 1
