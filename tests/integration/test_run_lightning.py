"""The front over Lightning's quickstart: Trainer.fit with validation."""

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("lightning") is None, reason="lightning is not installed (extra `integration`)"
)

# https://lightning.ai/docs/pytorch/stable/starter/introduction.html, on made-up data.
SCRIPT = """
    import sys
    import lightning as L
    import torch
    from torch import nn, optim, utils

    faults = sys.argv[2:]

    class LitAutoEncoder(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(28, 16), nn.ReLU(), nn.Linear(16, 3))
            self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), nn.Linear(16, 28))

        def training_step(self, batch, batch_idx):
            (x,) = batch
            z = self.encoder(x)  # unlearned
            x_hat = self.decoder(z.detach() if "unlearned" in faults else z)
            loss = nn.functional.mse_loss(x_hat, x)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            (x,) = batch
            self.log("val_loss", nn.functional.mse_loss(self.decoder(self.encoder(x)), x))

        def on_train_epoch_end(self):
            if "eval" in faults:
                self.eval()  # eval
            if "forgotten" in faults:
                self.eval()
                self.encoder(torch.randn(1, 28))  # forgotten
                self.train()

        def configure_optimizers(self):
            return optim.Adam(self.parameters(), lr=1e-3)

    data = utils.data.TensorDataset(torch.randn(32, 28))
    loader = utils.data.DataLoader(data, batch_size=8)
    trainer = L.Trainer(
        max_epochs=3, logger=False, enable_checkpointing=True, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, default_root_dir=sys.argv[1],
    )
    autoencoder = LitAutoEncoder()
    trainer.fit(autoencoder, loader, loader)
    trainer.validate(autoencoder, loader)
    autoencoder.eval()
    with torch.no_grad():
        print(autoencoder.encoder(torch.rand(4, 28)).shape)
    if "left" in faults:
        torch.set_grad_enabled(False)  # left
"""


def test_healthy(run, tmp_path):
    """Nothing is found in the quickstart."""
    assert run(SCRIPT, str(tmp_path)).findings == []


def test_faulty(run, tmp_path):
    """Faults put into it are named at their lines."""
    ran = run(SCRIPT, str(tmp_path), "unlearned", "forgotten", "left")
    assert ran.kinds() == {  # a mode that is left at the very end harms no training
        ("no-gradient", ran.at("unlearned")),
        ("recorded-eval", ran.at("forgotten")),
    }


def test_left_in_eval_mode(run, tmp_path):
    """So is eval mode."""
    ran = run(SCRIPT, str(tmp_path), "eval")
    assert ran.kinds() == {("eval-mode", ran.at("eval"))}
