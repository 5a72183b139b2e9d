"""Each rule finds its fault in every shape, and says nothing of what looks like it.

The fixtures are sources: ``# %%`` begins one, ``#: GG101`` ends a line with that finding.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradguard._findings.kinds import CHECK_NAMES
from gradguard._lint.check import check_bytes
from gradguard._lint.explain import explanation
from gradguard._lint.rules import RULES

NAMES = frozenset(rule.name for rule in RULES)
FIXTURES = Path(__file__).parent / "fixtures"
CODES = [rule.code for rule in RULES]
BY_CODE = {rule.code: rule for rule in RULES}


def sources(code):
    text = (FIXTURES / f"{code.lower()}.py").read_text()
    return [(one.partition("\n")[0], one.partition("\n")[2]) for one in text.split("# %% ")[1:]]


def wanted(source):
    lines = enumerate(source.splitlines(), 1)
    return [(number, code) for number, line in lines for code in re.findall(r"#: (GG\d+)", line)]


def found(source, names=NAMES, filename="example.py"):
    checked = check_bytes(source.encode(), filename, names)
    return [(one.lineno, one.code) for one in checked.findings]


CASES = [
    pytest.param(code, text, id=f"{code}-{title}")
    for code in CODES
    for title, text in sources(code)
]


@pytest.mark.parametrize(("code", "source"), CASES)
def test_fixture(code, source):
    """A fixture gives the findings that it says, at their lines, and no others of its rule."""
    rule = frozenset({BY_CODE[code].name})
    assert found(source, rule) == wanted(source)


@pytest.mark.parametrize("code", CODES)
def test_enough_shapes(code):
    """Each rule has at least six shapes that it finds and six that only look like it."""
    marks = [bool(wanted(text)) for _, text in sources(code)]
    assert sum(marks) >= 6
    assert len(marks) - sum(marks) >= 6


@pytest.mark.parametrize("code", CODES)
def test_examples(code):
    """A rule finds its bad example and says nothing of its good one."""
    rule = BY_CODE[code]
    assert code in [each for _, each in found(rule.bad)]
    assert found(rule.good) == []


@pytest.mark.parametrize("which", ["bad", "good"])
def test_examples_run(which, tmp_path):
    """Both examples of every rule do under the real torch what the rule says that they do."""
    script = tmp_path / "examples.py"
    programs = {rule.code: getattr(rule, which) for rule in RULES}
    script.write_text(
        "import torch, traceback, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "failed = []\n"
        f"for code, program in {programs!r}.items():\n"
        "    try:\n"
        "        with torch.inference_mode(False), torch.enable_grad():\n"
        "            exec(compile(program, code, 'exec'), {'__name__': code})\n"
        "    except BaseException:\n"
        "        failed.append(code + traceback.format_exc())\n"
        "if failed:\n    raise SystemExit('\\n'.join(failed))\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == ""
    assert run.returncode == 0


def test_every_rule_is_named():
    """Each rule has its own code and name, in order, and the table of names has no others."""
    assert CODES == sorted(CODES) == [code for code in CHECK_NAMES if code >= "GG101"]
    assert all(rule.name == CHECK_NAMES[rule.code] for rule in RULES)


@pytest.mark.parametrize("code", CODES)
def test_explanations(code):
    """The explanation of a rule has its code, name, reason and both examples."""
    rule, text = BY_CODE[code], explanation(code)
    assert text.startswith(f"{code} {rule.name}")
    assert rule.why in text
    assert explanation(rule.name) == text
    for program in (rule.bad, rule.good):
        assert program.strip().splitlines()[-1] in text


@pytest.mark.parametrize("code", CODES)
def test_messages(code):
    """A message is one line that says what to write, in backquotes."""
    rule = BY_CODE[code]
    for _, text in sources(code):
        for one in check_bytes(text.encode(), "a.py", frozenset({rule.name})).findings:
            assert "\n" not in one.message
            assert one.message.count("`") % 2 == 0
            assert one.message.endswith((".", "`"))


def test_severities():
    """A `yield` in a plain generator is a notice, in an async one a fault; so of GG108."""
    source = "import torch\n{}def f():\n    with torch.no_grad():\n        yield\n"
    for prefix, severity in (("", "notice"), ("async ", "fault")):
        (one,) = check_bytes(source.format(prefix).encode(), "a.py", NAMES).findings
        assert one.severity == severity
    titles = {title: text for title, text in sources("GG108") if wanted(text)}
    for title, text in titles.items():
        found_here = check_bytes(text.encode(), "a.py", frozenset({"unscoped-set"})).findings
        notice = "where nothing raises" in title
        assert {one.severity for one in found_here} == {"notice" if notice else "fault"}
