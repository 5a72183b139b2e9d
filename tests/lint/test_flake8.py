"""The flake8 plugin and the pre-commit hook, run for real."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import gradguard

pytest.importorskip("flake8")
SOURCE = (
    "import torch\n\n\ndef f(x):\n    y = 'ü'; torch.no_grad()\n    torch.no_grad().__enter__()\n"
    "    torch.no_grad()  # noqa: GG107\n    return y\n"
)
HOOKS = Path(gradguard.__file__).parents[1] / ".pre-commit-hooks.yaml"


@pytest.fixture
def flake8(tmp_path):
    """Run flake8 on a file in a folder without other configuration."""

    def run(*options, source=SOURCE):
        (tmp_path / "a.py").write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "flake8", "--isolated", *options, "a.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def codes(text):
    return re.findall(r"^a\.py:(\d+):(\d+): (GG\d+)", text, re.MULTILINE)


def test_flake8(flake8):
    """flake8 tells the rules that are on by default, at line and column, and obeys `# noqa`."""
    run = flake8("--extend-ignore=E,W,F")
    assert (run.returncode, run.stderr) == (1, "")
    assert codes(run.stdout) == [("5", "14", "GG107")]
    assert "GG107 `torch.no_grad()` has no effect" in run.stdout


def test_flake8_selects(flake8):
    """A rule that is off is told when flake8's options select it."""
    assert ("6", "5", "GG109") in codes(flake8("--select=GG109").stdout)
    assert codes(flake8("--select=GG108").stdout) == []


def test_flake8_names_the_plugin():
    """flake8 lists the plugin with gradguard's version."""
    command = [sys.executable, "-m", "flake8", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"gradguard: {gradguard.__version__}" in shown.replace("\n", " ")


@pytest.mark.skipif(not HOOKS.exists(), reason="the hook is a file of the checkout")
def test_pre_commit_hook(tmp_path):
    """The hook's entry, run as pre-commit runs it, checks the files it is given."""
    lines = HOOKS.read_text(encoding="utf-8").splitlines()
    hook = dict(line.lstrip("- ").partition(": ")[::2] for line in lines)
    assert hook["id"] == "gradguard-check"
    assert hook["types_or"] == "[python, pyi]"
    (tmp_path / "a.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "b.py").write_text("import torch\n", encoding="utf-8")
    python, *entry = shlex.split(hook["entry"])
    assert python == "python"
    run = subprocess.run(
        [sys.executable, *entry, "a.py", "b.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout.startswith("a.py:5:14: GG107")
    assert run.stdout.endswith("in 2 files\n")
