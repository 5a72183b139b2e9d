"""The front over accelerate's quickstart loop."""

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("accelerate") is None, reason="accelerate is not installed (extra `integration`)"
)

# https://huggingface.co/docs/accelerate/quicktour, on a small model and made-up data.
SCRIPT = """
    import sys
    import torch
    from accelerate import Accelerator
    from torch import nn

    faulty = "faulty" in sys.argv
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randn(32, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for epoch in range(2):
        model.train()
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
        model.eval()
        with torch.set_grad_enabled(faulty):
            for inputs, targets in loader:
                outputs = model(inputs)  # forgotten
                accelerator.gather_for_metrics((outputs.detach(), targets))
    if faulty:
        optimizer.zero_grad()
        model.train()
        torch.set_grad_enabled(False)  # left
        model(inputs)
        optimizer.step()
"""


def test_healthy(run):
    """Nothing is found in the quickstart."""
    assert run(SCRIPT).findings == []


def test_faulty(run):
    """Faults put into it are named at their lines."""
    ran = run(SCRIPT, "faulty")
    kinds = {(one["kind"], one["lineno"]) for one in ran.findings}
    assert ("mode-leak", ran.at("left")) in kinds
    assert ("recorded-eval", ran.at("forgotten")) in kinds
