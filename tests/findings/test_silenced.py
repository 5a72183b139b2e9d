"""Comments that silence a line."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradguard._findings.silenced import Silenced

NAMES = {"unused-guard", "unscoped-set", "mode-leak"}


@pytest.mark.parametrize(
    "comment",
    [
        "# gradguard: ignore[unused-guard]",
        "# gradguard: ignore[GG107]",
        "#gradguard:ignore[ GG108 , GG107 ]",
        "# noqa: E501  # gradguard: ignore[GG10]",
        "# type: ignore[x]  # gradguard: ignore[GG107] because it is so",
        "# noqa: GG107",
        "# NOQA:E501,GG107",
        "# noqa: GG107 GG108",
        "# noqa",
    ],
)
def test_silences(comment):
    """A comment with the name, code or prefix of the finding silences it, on its line alone."""
    silenced = Silenced(f"x = 1\ny = 2  {comment}\n", noqa=True)
    assert silenced.covers(2, "unused-guard")
    assert not silenced.covers(1, "unused-guard")
    assert not silenced.covers(None, "unused-guard")


@pytest.mark.parametrize(
    "line",
    [
        "y = 2  # gradguard: ignore[GG108]",
        "y = 2  # noqa: E501",
        "y = '# gradguard: ignore[GG107]'",
        "y = '# noqa'",
        "y = 2  # gradguard: ignore",
        "y = 2  # gradguard: ignore[]",
    ],
)
def test_does_not_silence(line):
    """Another kind, a string that looks like a comment, or no kind at all silence nothing."""
    assert not Silenced(line, noqa=True).covers(1, "unused-guard")


def test_noqa_is_of_check_alone():
    """What a program does when it runs is not silenced by a linter's comment."""
    assert not Silenced("y = 2  # noqa").covers(1, "mode-leak")
    assert not Silenced("y = 2  # noqa: GG107").covers(1, "unused-guard")


def messages(source, names=NAMES, **options):
    return [one.message for one in Silenced(source, **options).unused(names)]


def test_unused():
    """A comment, or the word of one, that silences nothing is told with its line and column."""
    silenced = Silenced("y = 2  # gradguard: ignore[GG107, GG108]\nz = 3  # noqa: GG108", noqa=True)
    assert silenced.covers(1, "unused-guard")
    assert [(one.lineno, one.column) for one in silenced.unused(NAMES)] == [(1, 8), (2, 8)]
    assert "no GG108 here" in silenced.unused(NAMES)[0].message


def test_unused_of_what_was_not_looked_for():
    """A comment for a check that did not run may silence something: nothing is told."""
    assert messages("y = 2  # gradguard: ignore[empty-step]") == []
    assert messages("y = 2  # noqa: E501", noqa=True) == []
    assert messages("y = 2  # noqa", noqa=True) == []


def test_meaningless():
    """A comment without a kind, or with an unknown one, says what to write."""
    assert "name the kind" in messages("y = 2  # gradguard: ignore")[0]
    assert "'GG999' is no code" in messages("y = 2  # gradguard: ignore[GG999]")[0]


@given(st.text(), st.sampled_from(["# noqa", "# gradguard: ignore[GG107]"]))
@example("\r\x80", "# noqa")  # where Python's own tokenizer, from 3.12 on, fails
@example(" }0\x0c\x80", "# noqa")  # and where it ends in a SystemError
def test_any_source(text, comment):
    """Whatever the source is, Python or not, it is read without an error."""
    Silenced(f"{text}\n(\x00 {comment}\n\t}} ''' ", noqa=True).unused(NAMES)
