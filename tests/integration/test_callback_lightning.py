"""gradguard.integrations.lightning under a real Lightning Trainer."""

import logging
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import GradModeError, GradModeWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Lightning's own imports warn, before any mark is read
    lightning = pytest.importorskip("lightning", reason="needs Lightning: the extra 'integration'")
    from gradguard.integrations.lightning import GradGuardCallback

pytestmark = pytest.mark.filterwarnings("default")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def loader():
    return DataLoader(TensorDataset(torch.randn(16, 4), torch.randn(16, 1)), batch_size=4)


def trainer(callback, path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    given = {"max_epochs": 2, "devices": 1, "enable_model_summary": False, **quiet, **options}
    return lightning.Trainer(
        accelerator="cpu", callbacks=[callback], default_root_dir=path, **given
    )


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Alternating(Module):
    """Two optimizers by hand, in turn: a GAN's way."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 1)

    def training_step(self, batch, at):
        x, y = batch
        part, optimizer = ((self.net, 0), (self.other, 1))[at % 2]
        chosen = self.optimizers()[optimizer]
        chosen.zero_grad()
        self.manual_backward(nn.functional.mse_loss(part(x), y))
        chosen.step()

    def configure_optimizers(self):
        return [
            torch.optim.AdamW(self.net.parameters(), lr=0.01),
            torch.optim.SGD(self.other.parameters(), lr=0.01),
        ]


def hooks(module):
    """Count what hangs on a module and on its optimizers."""
    found = [module, *module.modules()]
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in found) + sum(
        len(one._optimizer_step_pre_hooks) + len(one._optimizer_step_post_hooks)
        for one in module.trainer.optimizers
    )


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 8),
        ({"accumulate_grad_batches": 2}, 4),
        ({"gradient_clip_val": 0.5, "val_check_interval": 2}, 8),
    ],
)
def test_a_healthy_fit_is_silent(options, steps, tmp_path):
    """With its sanity check, validation, accumulation and clipping; nothing is left hanging."""
    callback, module = GradGuardCallback(), Module()
    trainer(callback, tmp_path, **options).fit(module, loader(), loader())
    assert callback.watch.report() == f"watch_training: {steps} optimizer steps, nothing found"
    assert hooks(module) == 0


def test_resuming_is_silent(tmp_path):
    """A fit that goes on from a checkpoint has a watch of its own."""
    first, module = GradGuardCallback(), Module()
    fit = trainer(first, tmp_path)
    fit.fit(module, loader(), loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    callback, again = GradGuardCallback(), Module()
    trainer(callback, tmp_path, max_epochs=3).fit(
        again, loader(), loader(), ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert callback.watch.report() == "watch_training: 4 optimizer steps, nothing found"


def test_several_optimizers_are_watched(tmp_path):
    """Each in its turn."""
    callback, module = GradGuardCallback(), Alternating()
    trainer(callback, tmp_path).fit(module, loader())
    assert callback.watch.steps == 8
    assert callback.watch.findings == []


class LeavesGradOff(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False  # else Lightning turns grad on around each step

    def training_step(self, batch, at):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, at))
        self.optimizers().step()

    def on_train_epoch_start(self):
        torch.set_grad_enabled(False)  # left


def test_a_mode_that_was_left_is_named(tmp_path):
    """The fit ends at the first forward in it, before the crash, and nothing hangs on."""
    callback, module = GradGuardCallback(), LeavesGradOff()
    try:
        with pytest.raises(GradModeError, match="Grad mode was left off"):
            trainer(callback, tmp_path).fit(module, loader())
    finally:
        torch.set_grad_enabled(True)
    assert hooks(module) == 0


class ForgetsTrain(Module):
    def on_validation_epoch_end(self):
        self.forgot = True

    def on_train_batch_start(self, *_):
        if getattr(self, "forgot", False) and self.trainer.current_epoch:
            self.net.eval()
            self.eval()  # forgotten


def test_a_forgotten_train_is_named(tmp_path):
    """Steps that go on in eval mode after a validation are told, as often as asked for."""
    said = []
    callback, module = GradGuardCallback(on_violation=said.append), ForgetsTrain()
    trainer(callback, tmp_path).fit(module, loader(), loader())
    assert said
    assert "eval mode" in str(said[0])


def test_it_can_warn(tmp_path):
    """With warn the fit goes on."""
    callback = GradGuardCallback(on_violation="warn")
    with pytest.warns(GradModeWarning, match="eval mode"):
        trainer(callback, tmp_path).fit(ForgetsTrain(), loader(), loader())
    assert callback.watch.steps == 8


class Fails(Module):
    def on_train_batch_end(self, *_):
        raise ValueError("broken")


def test_an_exception_ends_the_watch(tmp_path):
    """Whatever ended the fit, nothing hangs on the module afterwards."""
    callback, module = GradGuardCallback(), Fails()
    with pytest.raises(ValueError, match="broken"):
        trainer(callback, tmp_path).fit(module, loader())
    assert hooks(module) == 0


def test_nothing_to_optimize(tmp_path):
    """A module without optimizers, as some only predict or validate, is left alone."""

    class Frozen(Module):
        def configure_optimizers(self):
            return None

    callback = GradGuardCallback()
    trainer(callback, tmp_path).fit(Frozen(), loader())
    assert callback.watch is None


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_on_two_ranks(tmp_path):
    """Under DDP each rank has its watch; a healthy fit is silent."""
    callback = GradGuardCallback()
    trainer(callback, tmp_path, devices=2, strategy="ddp_fork", max_epochs=1).fit(
        Module(), loader(), loader()
    )


ONE_RANK = """
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset
from gradguard.integrations.lightning import GradGuardCallback

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False  # else Lightning turns grad on around each step
        self.net = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, at):
        if self.global_rank == 1 and at == 1:
            torch.set_grad_enabled(False)  # left
        loss = self(batch[0]).square().mean()
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    data = DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=2)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, enable_model_summary=False,
        callbacks=[GradGuardCallback()], **quiet,
    ).fit(Module(), data)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_a_fault_on_one_of_two_ranks(tmp_path):
    """The rank and the line are told, and the job ends; the other rank does not wait for ever."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(ONE_RANK), encoding="utf-8")
    lines = script.read_text(encoding="utf-8").splitlines()
    (left,) = [at for at, text in enumerate(lines, 1) if text.endswith("# left")]
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "rank 1 of 2" in done.stderr, done.stderr[-3000:]
    assert "Grad mode was left off" in done.stderr
    assert f"script.py:{left}" in done.stderr
