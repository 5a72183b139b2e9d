"""``gradguard run`` and `accelerate launch`, either under the other, on two processes."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("accelerate", reason="needs accelerate: the extra 'integration'")

SCRIPT = """
import sys
import torch
from accelerate import Accelerator

def validate(accelerator):
    if "leak" in sys.argv and accelerator.process_index == 1:
        torch.set_grad_enabled(False)  # HERE

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(3):
    loss = model(torch.ones(4, 2)).sum()
    if loss.requires_grad:
        optimizer.zero_grad()
        accelerator.backward(loss)
    optimizer.step()
    validate(accelerator)
accelerator.end_training()
"""
LINE = SCRIPT.splitlines().index("        torch.set_grad_enabled(False)  # HERE") + 1
# --multi_gpu is how accelerate starts several processes on this machine, by torch.distributed.run.
LAUNCH = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
OPTIONS = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture
def run(tmp_path):
    """Run a command line of this Python in a folder with the script."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")

    def started(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return started


def test_accelerate_launch_under_run(run, tmp_path):
    """The leak of one process is named with its line and rank, and healthy ones are not."""
    front = ["-m", "gradguard", "run", "--strict", "--report", "report.json", "-m"]
    done = run(*front, *LAUNCH, *OPTIONS, "script.py", "leak")
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (leak,) = report["findings"]
    assert (leak["kind"], leak["filename"], leak["lineno"]) == ("mode-leak", "script.py", LINE)
    assert leak["ranks"] == [1]
    healthy = run(*front, *LAUNCH, *OPTIONS, "script.py")
    assert healthy.returncode == 0, healthy.stderr
    assert "gradguard: nothing found (6 optimizer steps, 2 models called, in 3 processes)" in (
        healthy.stderr
    )


def test_run_under_accelerate_launch(run, tmp_path):
    """Each rank under its own gradguard writes its report; the leak is told once."""
    inner = ["-m", "gradguard", "run", "--report", "report.json", "script.py", "leak"]
    done = run("-m", *LAUNCH, *OPTIONS, *inner)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"script.py:{LINE}: mode-leak [rank 1]") == 1
    for rank in range(2):
        report = json.loads((tmp_path / f"report.rank{rank}.json").read_text(encoding="utf-8"))
        assert rank in {process["rank"] for process in report["processes"]}
