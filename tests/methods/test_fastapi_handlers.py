"""``inference_function`` on the handlers of a web framework that reads signatures: FastAPI."""

from __future__ import annotations

import asyncio
import inspect
from typing import Annotated

import pytest
import torch
from torch import nn

from gradguard import GradState, grad_state, inference_function

fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from fastapi import Body, Depends, FastAPI  # noqa: E402
from fastapi.responses import StreamingResponse  # noqa: E402
from pydantic import BaseModel  # noqa: E402

app = FastAPI()
net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.BatchNorm1d(3).eval())


class Rows(BaseModel):
    values: list[list[float]]


def model() -> nn.Module:
    return net


def seen() -> list[bool]:
    state = grad_state()
    return [net.training, net[1].training, state.grad_enabled, state.inference_mode]


IN_EVAL = [False, False, False, True]


@app.post("/by-closure/{name}")
@inference_function(modules=net)
def by_closure(name: str, rows: Rows, top: int = 1) -> dict[str, object]:
    net(torch.tensor(rows.values))
    return {"name": name, "rows": len(rows.values), "top": top, "seen": seen()}


@app.post("/by-dependency")
@inference_function
async def by_dependency(
    rows: Annotated[Rows, Body()], loaded: Annotated[nn.Module, Depends(model)]
) -> list[bool]:
    await asyncio.sleep(0)
    loaded(torch.tensor(rows.values))
    return seen()


@inference_function
async def parts(loaded, rows):
    for row in rows:
        loaded(torch.tensor([row]))
        yield f"{seen()};"
        await asyncio.sleep(0)


@app.post("/stream")
async def stream(rows: Rows, loaded: Annotated[nn.Module, Depends(model)]) -> StreamingResponse:
    return StreamingResponse(parts(rows=rows.values, loaded=loaded), media_type="text/plain")


def ask(path, **options):
    """Send one request through the whole application, as a server does."""

    async def send():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return await client.request("POST" if "json" in options else "GET", path, **options)

    return asyncio.run(send())


@pytest.fixture(autouse=True)
def _all_is_given_back():
    before = [part.training for part in net.modules()]
    yield
    assert [part.training for part in net.modules()] == before
    assert grad_state() == GradState(True, False)


ROWS = {"values": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}


def test_a_handler_keeps_its_path_body_and_query():
    """Annotations written as strings are resolved where the handler stands."""
    answer = ask("/by-closure/iris?top=2", json=ROWS)
    assert answer.json() == {"name": "iris", "rows": 2, "top": 2, "seen": IN_EVAL}
    assert ask("/by-closure/iris?top=x", json=ROWS).status_code == 422
    assert ask("/by-closure/iris", json={"values": 3}).status_code == 422


def test_a_model_from_a_dependency():
    """What the framework passes by keyword is found and is in eval mode in an async handler."""
    assert ask("/by-dependency", json=ROWS).json() == IN_EVAL


def test_a_streamed_answer():
    """The parts of a stream are made in eval mode, each."""
    assert ask("/stream", json=ROWS).text == f"{IN_EVAL};" * 2


def test_the_schema_is_that_of_the_undecorated_handlers():
    """Decorated or not, OpenAPI shows the same parameters and bodies."""
    plain = FastAPI()
    plain.post("/by-closure/{name}")(inspect.unwrap(by_closure))
    plain.post("/by-dependency")(inspect.unwrap(by_dependency))
    plain.post("/stream")(stream)
    assert ask("/openapi.json").json() == plain.openapi()
