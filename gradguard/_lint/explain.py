"""The rules for a reader: a list, and each at length."""

from gradguard._findings.kinds import ALL, CHECK_NAMES, names_of, unknown
from gradguard._lint.rule import Rule
from gradguard._lint.rules import RULES


def listing() -> str:
    """Return one line for each rule: code, name, what is wrong; an asterisk where it is off."""
    width = max(len(name) for name in CHECK_NAMES.values())
    lines = [
        f"{one.code}{' ' if one.default else '*'} {one.name:{width}}  {_first(one)}"
        for one in RULES
    ]
    return "\n".join([*lines, "", "* off unless selected: --select CODE"]) + "\n"


def explanation(word: str) -> str:
    """Return what a rule is about, with a bad and a good example.

    Raises:
        ValueError: the word is no code or name of a rule.
    """
    names = names_of(word)
    rules = [one for one in RULES if one.name in names]
    if not rules or word == ALL:
        raise ValueError(unknown(word) if not names else f"{word!r} is no rule with a text")
    return "\n".join(_text(one) for one in rules)


def _text(rule: Rule) -> str:
    off = "" if rule.default else " (off unless selected)"
    return (
        f"{rule.code} {rule.name}{off}\n\n{rule.why}\n\n"
        f"Bad:\n{_indented(rule.bad)}\nGood:\n{_indented(rule.good)}"
    )


def _indented(program: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in program.strip().splitlines())


def _first(rule: Rule) -> str:
    return rule.why.split("\n")[0]
