"""``python -m gradguard``: commands, help, version and wrong command lines."""

import contextlib
import io
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard.__main__ import EXAMPLES, EXIT_CODES, _parser, main
from gradguard._demo import command as _demo
from gradguard._findings.kinds import RUN_KINDS

PROG = _parser().prog  # as this process was started, be it pytest or python -m pytest
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


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option):
    """It prints the package's version."""
    shown = gradguard_command(option)
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


@pytest.mark.parametrize("command", [gradguard_command, without_torch])
def test_no_arguments(command):
    """Without a command the help is printed, and the exit code is 0."""
    shown = command()
    assert shown.returncode == 0
    assert "commands:" in shown.stdout
    assert shown.stderr == ""


def test_the_help_tells_what_all_commands_share(capsys):
    """The kinds, the exit codes and two examples, which are command lines that are understood."""
    assert main([]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for kind, meaning in {**RUN_KINDS, **EXIT_CODES}.items():
        assert f"{kind} {meaning}" in shown
    for example, meaning in EXAMPLES.items():
        assert f"{example} {meaning}" in shown
        assert _parser().parse_args(example.split()).command is not None


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_the_help_fits_the_terminal(capsys, monkeypatch, columns):
    """Lines end before the terminal does, as far as the words allow."""
    monkeypatch.setenv("COLUMNS", str(columns))
    main([])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= max(columns, 63)  # the longest line that is a unit


@pytest.mark.parametrize(
    ("started", "prog"),
    [
        ("/usr/bin/gradguard", "gradguard"),
        ("gradguard.exe", "gradguard"),
        ("/lib/gradguard/__main__.py", "python -m gradguard"),
    ],
)
def test_the_help_names_the_command_as_it_was_started(monkeypatch, capsys, started, prog):
    """So its examples can be pasted."""
    monkeypatch.setattr(sys, "argv", [started])
    main([])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {prog} [-h]")
    assert f"  {prog} run train.py" in shown


def test_the_console_script():
    """Installing makes `gradguard` the same command."""
    (script,) = entry_points(group="console_scripts", name="gradguard")
    assert script.load() is main


def test_no_colours_without_a_terminal(monkeypatch):
    """What is piped has none, whatever this Python's argparse does on a terminal."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert "\x1b" not in gradguard_command("--help").stdout


def test_unknown_command():
    """An unknown command is named, beside those there are."""
    line = refused("trian")
    assert "'trian'" in line
    assert "demo" in line
    assert line.endswith("gradguard --help`.")


def test_demo_takes_no_arguments():
    """An argument too many is named, and the help of the command is not hidden behind another."""
    assert "unrecognized arguments: 30" in refused("demo", "30")


OWN_WORDS = {"-h", "--help", "-V", "--version", "demo", "run", "check"}  # not wrong


@given(st.text().filter(lambda word: word not in OWN_WORDS))
def test_one_line_whatever_the_argument(word):
    """Whatever the wrong command or argument is, it is refused in one line."""
    assert refused(word, "demo").startswith(f"{PROG}: error: ")
    assert "error: " in refused("demo", word)


def test_exit_code(monkeypatch):
    """What a command returns is the exit code."""
    monkeypatch.setattr(_demo, "main", lambda: 7)
    assert main(["demo"]) == 7
