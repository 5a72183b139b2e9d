"""Every example in a docstring or in the README runs and prints what it says."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradguard
from gradguard.__main__ import _parser
from gradguard._findings.config import load_config
from gradguard._findings.finding import Finding
from gradguard._findings.formats import render
from gradguard._findings.kinds import RUN_KINDS
from gradguard._findings.report import Process, Report, entry

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
    if name.startswith("gradguard.integrations.") and not name.endswith("._watching"):
        pytest.importorskip(name.rpartition(".")[2], reason="the extra `integration`")
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
    if isinstance(value, type):  # doctest passes over a class that says it is of another module
        module = importlib.import_module(f"gradguard.{gradguard._MODULE_OF[name]}")
        for test in doctest.DocTestFinder().find(
            value, name, module=False, globs=dict(vars(module))
        ):
            _, failures = run_examples(test)
            assert failures == ""


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


def test_the_lines_of_a_training_loop():
    """The block of assertions runs in a step as it stands, the backward where it says."""
    (block,) = (
        one.values[0] for one in python_blocks() if "assert_parameters_used(" in one.values[0]
    )
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)})
    model["encoder"].requires_grad_(requires_grad=False)
    loss = model["head"](model["encoder"](torch.ones(1, 2))).sum()
    optimizer = torch.optim.SGD(model["head"].parameters(), lr=0.1)
    names = {"model": model, "loss": loss, "optimizer": optimizer, "logs": [loss.item()]}
    exec("from gradguard import *", names)  # noqa: S102 (the README's own lines)
    for line in block.splitlines():
        if "# after backward" in line:
            loss.backward()
        exec(line, names)  # noqa: S102 (as above)
    optimizer.step()
    names["watch"].remove()
    assert names["watch"].findings == []


def test_the_first_example_prints_what_the_readme_shows(tmp_path):
    """The README's opening program, run as a user would, prints the message below it."""
    text = README.read_text(encoding="utf-8")
    program, shown = re.findall(r"^```(?:python)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    assert printed("python train.py", tmp_path).endswith(shown)


def console_blocks():
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [pytest.param(block, id=f"block {at}") for at, block in enumerate(blocks)]


def commands(block):
    """List the commands of a console block, each with what it prints."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def printed(command, directory):
    """Return what a command of the README prints, both streams in the order of writing."""
    name, *arguments = shlex.split(command)
    run = {
        "python": [sys.executable],
        "gradguard": [sys.executable, "-m", "gradguard"],
        # Of the plugins that happen to be installed, one warns outside a configured suite.
        "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"],
    }[name]
    done = subprocess.run(
        [*run, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout.replace(f"{directory}{os.sep}", "")


@pytest.mark.parametrize("block", console_blocks())
def test_readme_console(block, tmp_path):
    """A console block of the README prints what it shows, from the files that it shows."""
    for command, shown in commands(block):
        if command.startswith("cat "):
            (tmp_path / command.split()[1]).write_text(shown, encoding="utf-8")
        elif shown:
            said = printed(command, tmp_path)
            assert doctest.OutputChecker().check_output(shown, said, OPTIONS), said
        elif command.startswith("gradguard "):
            assert _parser().parse_args(shlex.split(command)[1:]).command is not None


@pytest.mark.parametrize("name", gradguard.__all__)
def test_the_readme_names_every_public_name(name):
    """None is missing where the README says what each does."""
    text = README.read_text(encoding="utf-8")
    table = text[text.index("## Every public name") : text.index("## What else there is")]
    assert f"`{name}`" in table


def test_the_readme_names_every_kind():
    """Each with the sentence of the command's help."""
    text = README.read_text(encoding="utf-8")
    assert [name for name in RUN_KINDS if f"| `{name}` | {RUN_KINDS[name]} |" not in text] == []


def test_every_report_has_the_documented_fields():
    """The README's table of the JSON report names what a run and a check write, and no more."""
    text = README.read_text(encoding="utf-8")
    table = text[text.index("| field | what it holds |") : text.index("## Guards")]
    named = set(re.findall(r"`([a-z_]+)`", table))
    found = entry(Finding(kind="mode-leak", message="", filename="a.py", lineno=1), 7)
    about = {"script": "a.py", "arguments": [], "exit_code": 0}
    run = Report(command="run", entries=[found], processes=[Process(7)], about=about)
    written = set()
    for report in (run, Report(command="check", entries=[found], files=1)):
        document = json.loads(render(report, "json"))
        inner = [document["versions"], document["counts"], *document["findings"]]
        written |= set(document).union(*inner, *document["processes"])
    assert written == named


def test_the_readmes_configuration_is_valid(tmp_path):
    """The TOML that it shows is read as it stands."""
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(block, encoding="utf-8")
    config = load_config(tmp_path)
    assert config.strict
    assert config.ignore


def test_the_readme_has_the_two_commands():
    """Each alone on a line, as the script that checks everything reads them."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("pip install -e")] == [
        "pip install -e '.[dev]' && python -m gradguard demo",
        "pip install -e '.[dev]' && python -m pytest",
    ]


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
