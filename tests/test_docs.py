"""Every example in a docstring or in the README runs and prints what it says."""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradguard

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
README = Path(__file__).parent.parent / "README.md"
# Importing this one runs the command line.
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(gradguard.__path__, "gradguard.")
    if not found.name.endswith("__main__")
)


def run_examples(test):
    """Run one doctest; return how many examples it had and what failed, as text."""
    said = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=said.append)
    return len(test.examples), "".join(said)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    """The examples of one module's docstrings run as they stand."""
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module, name):
        _, failures = run_examples(test)
        assert failures == ""


@pytest.mark.parametrize("name", gradguard.__all__)
def test_every_public_name_has_an_example(name):
    """`help()` on a public name shows what it does and an example that runs (errors say a fix)."""
    value = getattr(gradguard, name)
    text = value.__doc__ or ""
    assert len(text.splitlines()) > 3
    if not (isinstance(value, type) and issubclass(value, (Exception, Warning))):
        assert ">>>" in text


def python_blocks():
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [pytest.param(block, id=f"block {at}") for at, block in enumerate(blocks)]


@pytest.mark.parametrize("block", python_blocks())
def test_readme_example(block, tmp_path, monkeypatch):
    """A Python block of the README runs: with prompts it prints what it shows."""
    monkeypatch.chdir(tmp_path)
    if ">>>" in block:
        test = doctest.DocTestParser().get_doctest(block, {}, "README.md", str(README), 0)
        count, failures = run_examples(test)
        assert count
        assert failures == ""
    else:
        compile(block, "README.md", "exec")


def test_the_first_example_prints_what_the_readme_shows(tmp_path):
    """The README's opening program, run as a user would, prints the message below it."""
    text = README.read_text(encoding="utf-8")
    program, shown = re.findall(r"^```(?:python)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr.replace(f"{tmp_path}/", "").endswith(shown)


def test_the_readme_shows_the_figures_of_the_last_run():
    """The table of what an empty guard costs is the one that the benchmark last wrote."""
    last = README.parent / "benchmarks" / "overhead.json"
    if not last.exists():
        pytest.skip("the benchmarks are not beside the tests")
    run = json.loads(last.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8").replace("`", "")
    assert run["machine"] in text
    for name, figures in run["figures"].items():
        assert f"| {name} | {figures['of torch']:.2f} | {figures['of raw']:.2f} |" in text


def test_the_examples_can_fail():
    """A wrong output is reported, so the tests above cannot pass by themselves."""
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:\n    3\nGot:\n    2" in run_examples(test)[1]
