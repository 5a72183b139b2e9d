"""The README's lines for callbacks, each in a script of its library."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradguard

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.filterwarnings("default")


def lines(library):
    """Return the README's lines that import a callback, and those that use it."""
    (block,) = re.findall(
        r"^```python\n(from gradguard\.integrations.*?)^```",
        README.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    (part,) = (one for one in block.split("\n\n") if f"integrations.{library} import" in one)
    return part


def load(library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imports of these libraries warn
        return pytest.importorskip(library, reason="the extra `integration`")


def test_lightning(tmp_path, monkeypatch):
    """The Trainer made so watches its fit."""
    monkeypatch.chdir(tmp_path)
    lightning = load("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def training_step(self, batch, _):
            return self.net(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    names = {"lightning": lightning}
    exec(lines("lightning"), names)  # noqa: S102 (as it stands there)
    trainer = names["trainer"]
    trainer.fit_loop.max_epochs = 1
    trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2))
    (callback,) = (one for one in trainer.callbacks if isinstance(one, names["GradGuardCallback"]))
    assert callback.watch.report() == "watch_training: 2 optimizer steps, nothing found"


def test_transformers(tmp_path):
    """The Trainer made so watches its training."""
    load("accelerate")
    transformers = load("transformers")

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x):
            return {"loss": self.net(x).mean()}

    names = {
        "Trainer": transformers.Trainer,
        "model": Small(),
        "arguments": transformers.TrainingArguments(
            str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
        ),
        "data": [{"x": torch.ones(2)} for _ in range(4)],
    }
    exec(lines("transformers"), names)  # noqa: S102 (as it stands there)
    trainer = names["trainer"]
    trainer.train()
    kind = names["GradGuardCallback"]
    (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, kind))
    assert callback.watch.report() == "watch_training: 2 optimizer steps, nothing found"


def test_ignite():
    """The trainer is watched while it runs, and a fault ends it."""
    engine = load("ignite.engine")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = engine.create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    names = {"trainer": trainer, "model": model, "optimizer": optimizer}
    exec(lines("ignite"), names)  # noqa: S102 (as it stands there)
    data = [(torch.ones(2, 2), torch.ones(2, 1))] * 3
    trainer.run(data)
    trainer.add_event_handler(
        engine.Events.ITERATION_STARTED, lambda: torch.set_grad_enabled(False)
    )
    try:
        with pytest.raises(gradguard.GradModeError, match="Grad mode was left off"):
            trainer.run(data)
    finally:
        torch.set_grad_enabled(True)
