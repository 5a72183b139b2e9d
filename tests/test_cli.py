"""``python -m gradguard``: commands, help, version and wrong command lines."""

import contextlib
import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard.__main__ import main
from gradguard._demo import command as _demo

WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = ["gradguard", *sys.argv[1:]]
runpy.run_module("gradguard", run_name="__main__", alter_sys=True)
"""


def gradguard_command(*arguments):
    command = [sys.executable, "-m", "gradguard", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def without_torch(*arguments):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(*arguments):
    """Return the one line on stderr with which a wrong command line is refused."""
    with contextlib.redirect_stderr(io.StringIO()) as written, pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = written.getvalue().splitlines()
    return line


def test_help():
    """--help says what the program is for and lists the commands."""
    shown = gradguard_command("--help")
    assert shown.returncode == 0
    assert "usage: python -m gradguard" in shown.stdout
    assert "wrong grad modes in PyTorch" in shown.stdout
    assert "demo" in shown.stdout
    assert shown.stderr == ""


def test_version():
    """--version prints the package's version."""
    shown = gradguard_command("--version")
    assert shown.returncode == 0
    assert shown.stdout == f"gradguard {gradguard.__version__}\n"
    assert shown.stderr == ""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["demo", "--help"]])
def test_no_torch(arguments):
    """What only prints a text does not import torch."""
    assert without_torch(*arguments).returncode == 0


def test_no_torch_can_fail():
    """The way in which the test above keeps torch away does so: the demo needs it."""
    shown = without_torch("demo")
    assert shown.returncode == 1
    assert "import of torch halted" in shown.stderr


def test_no_arguments():
    """Without a command the exit code is 2, and one line says what is missing."""
    shown = gradguard_command()
    assert shown.returncode == 2
    assert shown.stdout == ""
    (line,) = shown.stderr.splitlines()
    assert line.startswith("python -m gradguard: error: ")
    assert "COMMAND" in line
    assert "`python -m gradguard --help`" in line


def test_unknown_command():
    """An unknown command is named, beside those there are."""
    line = refused("trian")
    assert "'trian'" in line
    assert "demo" in line
    assert line.endswith("See `python -m gradguard --help`.")


def test_demo_takes_no_arguments():
    """An argument too many is named, and the help of the command is not hidden behind another."""
    assert "unrecognized arguments: 30" in refused("demo", "30")


@given(st.text().filter(lambda word: word not in {"-h", "--help", "--version", "demo"}))
def test_one_line_whatever_the_argument(word):
    """Whatever the wrong command or argument is, it is refused in one line."""
    assert refused(word, "demo").startswith("python -m gradguard: error: ")
    assert refused("demo", word).startswith("python -m gradguard: error: ")


def test_exit_code(monkeypatch):
    """What a command returns is the exit code."""
    monkeypatch.setattr(_demo, "main", lambda: 7)
    assert main(["demo"]) == 7
