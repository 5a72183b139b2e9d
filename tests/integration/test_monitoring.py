"""The README's recipes for monitoring, with the real client libraries."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn

README = Path(__file__).parents[2] / "README.md"


def recipe(word):
    """Return the block of the README that imports a library."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if f"from {word} import" in block)
    return block


@pytest.fixture
def model():
    """A model that records a graph at one of two forwards."""
    return nn.Linear(2, 1).eval()


def serve(model):
    with torch.no_grad():
        model(torch.ones(1, 2))
    model(torch.ones(1, 2))


def test_prometheus(model):
    """What is scraped counts forwards and violations."""
    client = pytest.importorskip("prometheus_client", reason="the extra `integration`")
    names = {"model": model}
    exec(recipe("prometheus_client"), names)  # noqa: S102 (as it stands there)
    serve(model)
    scraped = client.generate_latest().decode()
    assert "gradguard_forwards 2.0" in scraped
    assert "gradguard_violations 1.0" in scraped


def test_opentelemetry(model):
    """What is exported counts violations."""
    pytest.importorskip("opentelemetry.sdk", reason="the extra `integration`")
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    exec(recipe("opentelemetry"), {"model": model})  # noqa: S102 (as it stands there)
    serve(model)
    data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0]
    assert data.name == "gradguard.violations"
    assert [point.value for point in data.data.data_points] == [1]


@pytest.mark.filterwarnings("default")
def test_fastapi():
    """The service answers on, and says what it does wrong."""
    pytest.importorskip("fastapi", reason="the extra `integration`")
    from fastapi.testclient import TestClient

    names = {}
    exec(recipe("fastapi"), names)  # noqa: S102 (as it stands there)
    client = TestClient(names["app"])
    for _ in range(3):
        answer = client.get("/predict", params={"x": 1.0})
        assert answer.status_code == 200
        assert isinstance(answer.json()["y"], float)
    told = client.get("/gradguard").json()
    assert (told["forwards"], told["violations"]) == (3, 3)


def test_the_logger(model, caplog):
    """Each finding of a watch goes once to the logger `gradguard`."""
    from gradguard import watch_inference

    with caplog.at_level(logging.INFO, logger="gradguard"):
        with watch_inference(model, on_violation=lambda error: None):
            for _ in range(3):
                model(torch.ones(1, 2))
    assert [record.name for record in caplog.records] == ["gradguard"]
    assert "records" in caplog.text or "recorded" in caplog.text
