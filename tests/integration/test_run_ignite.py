"""The front over ignite's quickstart engine."""

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("ignite") is None, reason="pytorch-ignite is not installed (extra `integration`)"
)

# https://docs.pytorch.org/ignite/quickstart.html, on a small model and made-up data.
SCRIPT = """
    import sys
    import torch
    from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Loss
    from torch import nn

    faulty = "faulty" in sys.argv
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(0, 2, (32,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.005)
    criterion = nn.CrossEntropyLoss()
    metrics = {"accuracy": Accuracy(), "loss": Loss(criterion)}

    def validate_step(engine, batch):
        model.eval()
        inputs, targets = batch
        return model(inputs).detach(), targets  # forgotten

    trainer = create_supervised_trainer(model, optimizer, criterion, "cpu")
    evaluator = Engine(validate_step) if faulty else create_supervised_evaluator(model, metrics)
    for name, metric in metrics.items():
        metric.attach(evaluator, name)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(trainer):
        evaluator.run(loader)
        print(evaluator.state.metrics)
        if faulty:
            torch.set_grad_enabled(False)  # left

    @trainer.on(Events.EPOCH_STARTED)
    def start(trainer):
        if faulty:
            torch.set_grad_enabled(True)

    trainer.run(loader, max_epochs=2)
"""


def test_healthy(run):
    """Nothing is found in the quickstart."""
    assert run(SCRIPT).findings == []


def test_faulty(run):
    """Faults put into it are named at their lines."""
    ran = run(SCRIPT, "faulty")
    assert ran.kinds() == {("recorded-eval", ran.at("forgotten"))}  # each epoch turns grad on
