"""A server in one process: fifty clients, an event loop, a thread pool and a training task.

HTTP-like, on a free port of the loopback device. The same server is run with torch's own guards.
"""

import asyncio
import copy
import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradState, evaluating, grad_state, inference_method, training_method

GRAD = GradState(grad_enabled=True, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
CLIENTS = 50
STEPS = 40  # of training, at least
EVAL = (False,) * 7  # the flags of all of Net's modules
ROLE = ContextVar("ROLE", default="serves")


def flags(net):
    return tuple(module.training for module in net.modules())


class Net(nn.Module):
    """A small model, one layer frozen in eval, that keeps what each forward saw."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.5))
        self.head = nn.Linear(32, 2)
        self.body[3].eval()
        self.seen = []

    def forward(self, x):
        self.seen.append((ROLE.get(), flags(self), grad_state()))
        return self.head(self.body(x))


class Service:
    """What a user of gradguard writes: the routes are coroutines that send their answer's parts."""

    def __init__(self, net, pool):
        self.net = net
        self.pool = pool

    @inference_method(module="net")
    def predict(self, rows):
        return self.net(rows).tolist()

    @inference_method(module="net")
    async def parts(self, rows):
        for row in rows.split(1):
            yield self.net(row).tolist()
            await asyncio.sleep(0)

    async def plain(self, rows, send):
        await send(self.predict(rows))

    async def stream(self, rows, send):
        async for part in self.parts(rows):
            await send(part)

    async def pooled(self, rows, send):
        loop = asyncio.get_running_loop()
        await send(await loop.run_in_executor(self.pool, self.predict, rows))

    async def carried(self, rows, send):
        loop = asyncio.get_running_loop()
        with gradguard.inference_mode(), evaluating(self.net):
            predict = gradguard.carry(lambda: self.net(rows).tolist())
            await send(await loop.run_in_executor(self.pool, predict))


class TorchService(Service):
    """The same as it is usually written: torch's guards, and eval mode flipped by hand."""

    @torch.inference_mode()
    def predict(self, rows):
        was = self.net.training
        self.net.eval()
        try:
            return self.net(rows).tolist()
        finally:
            self.net.train(was)

    @torch.inference_mode()
    async def parts(self, rows):
        was = self.net.training
        self.net.eval()
        try:
            for row in rows.split(1):
                yield self.net(row).tolist()
                await asyncio.sleep(0)
        finally:
            self.net.train(was)

    async def carried(self, rows, send):
        loop = asyncio.get_running_loop()
        with torch.no_grad():
            await send(await loop.run_in_executor(self.pool, lambda: self.net(rows).tolist()))


def rows_of(seed):
    return torch.randn(3 + seed % 7, 4, generator=torch.Generator().manual_seed(seed))


async def answer(service, reader, writer):
    """Answer one request, ``GET /route/seed HTTP/1.1``, with a line of JSON for each part."""
    request = await reader.readuntil(b"\r\n\r\n")
    _, route, seed = request.split()[1].decode().split("/")

    async def send(part):
        writer.write(json.dumps(part).encode() + b"\n")
        await writer.drain()

    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    await getattr(service, route)(rows_of(int(seed)), send)
    writer.close()
    await writer.wait_closed()


async def ask(port, route, seed):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /{route}/{seed} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    body = (await reader.read()).split(b"\r\n\r\n", 1)[1]
    writer.close()
    await writer.wait_closed()
    return [row for line in body.splitlines() for row in json.loads(line)]


async def client(port, routes, seed):
    return [(seed, await ask(port, route, seed)) for route in routes]


async def train(step, net, done):
    """Train until the clients are done; return the losses, and the steps that could not learn."""
    ROLE.set("trains")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses, lost = [], 0
    while not done.is_set() or len(losses) + lost < STEPS:
        loss = step()
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        else:
            lost += 1
        await asyncio.sleep(0)
    return losses, lost


async def serve(service, routes, step, trained):
    """Run the server, the clients and the training; return the answers and `train`'s result."""
    done = asyncio.Event()
    training = asyncio.create_task(train(step, trained, done))
    server = await asyncio.start_server(lambda *ends: answer(service, *ends), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        answers = await asyncio.gather(*(client(port, routes, seed) for seed in range(CLIENTS)))
    done.set()
    return [each for of_client in answers for each in of_client], await training


def run(service, routes, step, trained, *, isolate):
    async def main():
        if isolate:
            gradguard.isolate_tasks()
        return await asyncio.wait_for(serve(service, routes, step, trained), 30)

    return asyncio.run(main())


def wrong(answers, net):
    """Return how many of the answers are not the reference."""
    with gradguard.no_grad(), evaluating(net):
        return sum(
            not torch.allclose(torch.tensor(a), net(rows_of(s)), atol=1e-5) for s, a in answers
        )


def loss_of(net):
    x = rows_of(6)
    return (net(x) - x[:, :2] * x[:, 2:]).square().mean()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


ROUTES = ["plain", "stream", "pooled", "carried"]


def test_serving_while_a_copy_trains(net, pool):
    """Each prediction is the reference, the copy learns, and no forward sees a wrong mode."""
    before, own = flags(net), copy.deepcopy(net)
    answers, (_, lost) = run(Service(net, pool), ROUTES, lambda: loss_of(own), own, isolate=True)
    assert set(net.seen) == {("serves", EVAL, INFERENCE)}
    assert set(own.seen) == {("trains", before, GRAD)}
    assert len(answers) == CLIENTS * len(ROUTES)
    assert wrong(answers, net) == 0
    assert lost == 0
    with gradguard.no_grad(), evaluating(net, own):  # without the noise of dropout
        assert loss_of(own) < 0.5 * loss_of(net)
    assert flags(net) == flags(own) == before
    assert grad_state() == GRAD


def test_the_same_with_torchs_guards_goes_wrong(net, pool):
    """With torch's guards predictions are wrong, graphs are recorded and the copy's steps lost."""
    own = copy.deepcopy(net)
    service = TorchService(net, pool)
    try:
        answers, (_, lost) = run(service, ROUTES, lambda: loss_of(own), own, isolate=False)
    finally:
        torch.set_grad_enabled(True)  # what it leaves behind
    assert wrong(answers, net) > 0
    assert any(seen != EVAL for _, seen, _ in net.seen)  # dropout was on
    assert any(state.grad_enabled for _, _, state in net.seen)  # a graph was recorded
    assert lost > 0


def test_serving_and_training_one_module(net):
    """One module serves and trains in one loop: each forward sees the flags and mode it needs."""

    class Trainer:
        def __init__(self, net):
            self.net = net

        @training_method(module="net")
        def step(self):
            return loss_of(self.net)

    before = flags(net)
    answers, (losses, lost) = run(
        Service(net, None), ["plain", "stream"], Trainer(net).step, net, isolate=True
    )
    seen = {"serves": (EVAL, INFERENCE), "trains": (before, GRAD)}
    assert {role: (at, state) for role, at, state in net.seen} == seen
    assert set(net.seen) == {(role, *rest) for role, rest in seen.items()}
    assert len(answers) == CLIENTS * 2
    assert lost == 0
    assert len(losses) >= STEPS
    assert flags(net) == before
    assert grad_state() == GRAD
