"""`watch_training` on two ranks: DistributedDataParallel and FSDP2, healthy and not."""

import subprocess
import sys
import textwrap

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch's gloo backend"
)

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

DDP = """
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from gradguard import watch_training

    def validate(leak):
        if leak:
            torch.set_grad_enabled(False)

    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch_training(model, optimizer)
    for step in range(100):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()  # HERE
        optimizer.step()
        print(f"rank {dist.get_rank()} made step {step}", flush=True)
        validate(leak=step == 1 and dist.get_rank() == 1)
"""

FSDP = """
    import sys

    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from gradguard import GradModeError, watch_training

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
            self.unused = torch.nn.Linear(4, 1)

        def forward(self, x, cut):
            hidden = self.body(x)
            return self.head(hidden) + (self.unused(hidden).detach() if cut else self.unused(hidden))

    def validate():
        torch.set_grad_enabled(False)

    def train(cut, on_violation="warn"):
        model = Net()
        for part in (*model.children(), model):
            fully_shard(part, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with watch_training(model, optimizer, on_violation=on_violation) as watch:
            for _ in range(2):
                optimizer.zero_grad()
                model(torch.ones(2, 4), cut).sum().backward()
                optimizer.step()
        return watch.findings

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    sys.stdout.write(f"healthy: {train(cut=False)}\\n")  # at once: print writes part by part
    for one in train(cut=True):
        sys.stdout.write(f"cut: {one.kind} {one.rank} {sorted(one.parameters)}\\n")
    validate()
    try:
        train(cut=False, on_violation="raise")
    except GradModeError as error:
        sys.stdout.write(f"left: {error.finding.kind} {error.finding.rank}\\n")
    dist.destroy_process_group()
"""


@pytest.fixture
def launch(tmp_path):
    """Run a program on two ranks."""

    def launched(code):
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(code), encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-W", "ignore", *LAUNCH, "script.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return launched


def test_a_leak_on_one_rank_ends_the_job(launch):
    """The error names the rank and the line at the next forward, and no rank waits for ever."""
    done = launch(DDP)
    assert done.returncode != 0
    assert done.stdout.count("rank 1 made step 1") == 1
    assert "made step 2" not in done.stdout
    line = DDP.splitlines().index("        model(torch.ones(2, 4)).sum().backward()  # HERE") + 1
    assert "GradModeError: watch_training, at optimizer step 3: rank 1 of 2: " in done.stderr
    assert f"At script.py:{line}: model(torch.ones(2, 4))" in done.stderr


def test_sharded_parameters_are_watched_as_others(launch):
    """FSDP2: no false alarm, what the loss does not reach is named as written, a leak is found."""
    done = launch(FSDP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("healthy: []") == 2  # two ranks may write into one line
    for rank in range(2):
        assert f"cut: no-gradient {rank} ['unused.bias', 'unused.weight']" in done.stdout
        assert f"left: mode-leak {rank}" in done.stdout
