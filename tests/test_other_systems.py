"""What Windows and macOS lack is not asked for: proved where it has been taken away."""

import subprocess
import sys

import pytest

# Run before gradguard is imported. torch and the standard library have been, as they look for some
# of this themselves: what they find on Windows is theirs to know.
TAKE_AWAY = """
import multiprocessing.util, os, pkgutil, signal, subprocess, sys, warnings
import torch, torch.multiprocessing, torch.optim

for name in ("fork", "forkpty", "register_at_fork", "getuid", "setsid", "killpg", "waitpid"):
    delattr(os, name)
for name in ("SIGTERM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # importing it fails
warnings.filterwarnings("error", category=EncodingWarning, module="gradguard")
"""

EVERY_MODULE = """
import gradguard
for found in pkgutil.walk_packages(gradguard.__path__, "gradguard."):
    if not found.name.startswith(("gradguard.__main__", "gradguard.integrations.")):
        __import__(found.name)
"""

A_PROGRAM = """
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

@gradguard.inference_method(module="model")
def predict(self, x):
    return self.model(x)

class Served:
    def __init__(self):
        self.model = model
Served.predict = predict

with gradguard.trace() as switches, gradguard.watch_training(model, optimizer):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert Served().predict(torch.ones(1, 2)).is_inference()
assert len(switches) >= 2
with gradguard.no_grad():
    try:
        gradguard.assert_grad_enabled()
    except gradguard.GradModeError as error:
        assert "no_grad" in str(error), error
"""

RUN = """
import pathlib
from gradguard.__main__ import main
pathlib.Path("train.py").write_text('print("h\\u00e9")', encoding="utf-8")
sys.stdout.reconfigure(encoding="utf-8")
sys.argv = ["gradguard", "run", "--report", "report.json", "train.py"]
raise SystemExit(main())
"""


def without(program, folder, *options):
    """Run a program where that is missing; return the process."""
    command = [sys.executable, "-X", "warn_default_encoding", *options, "-c", TAKE_AWAY + program]
    return subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )


def test_what_is_taken_away_is_missed(tmp_path):
    """The proof can fail: a program that forks ends by it."""
    assert "has no attribute 'fork'" in without("os.fork()", tmp_path).stderr


def test_every_module_is_imported_without(tmp_path):
    """No module looks for `os.fork`, `SIGTERM` and the like where it is imported."""
    process = without(EVERY_MODULE, tmp_path)
    assert process.returncode == 0, process.stderr


def test_guards_watches_and_messages_work_without(tmp_path):
    """Guards, decorated methods, watches, a trace and the place in a message need none of it."""
    program = tmp_path / "program.py"
    program.write_text(TAKE_AWAY + "import gradguard" + A_PROGRAM, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", program],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("options", [(), ("-X", "utf8=0")], ids=["as here", "utf8=0"])
def test_run_works_without(tmp_path, options):
    """`gradguard run` watches a script whose source is not ASCII, and writes its report."""
    process = without(RUN, tmp_path, *options)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("h\u00e9")
    assert (tmp_path / "report.json").read_text(encoding="utf-8").startswith("{")
