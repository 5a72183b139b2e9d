"""FastAPI and Starlette on a running server: the mode of each thread, in every kind of handler.

The sync handlers of both, the parts of a sync stream and the halves of a sync ``yield`` dependency
run in a pool of threads that all requests share; all else runs in the loop's.
"""

import asyncio
import contextlib
import gc
import threading
from typing import Annotated

import pytest
import torch
from torch import nn

import gradguard

anyio = pytest.importorskip("anyio")
fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from fastapi import Depends, FastAPI  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.background import BackgroundTask  # noqa: E402
from starlette.concurrency import run_in_threadpool  # noqa: E402
from starlette.responses import JSONResponse, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

RECORDS, NO_GRAD, INFERENCE = [True, False], [False, False], [False, True]
INSIDE = {"no_grad": NO_GRAD, "inference_mode": INFERENCE}
each_guard = pytest.mark.parametrize("name", INSIDE)
each_framework = pytest.mark.parametrize("framework", [Starlette, FastAPI])
THREADS = 3


def mode():
    return [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]


class Server:
    """An application on a real server, on the loopback, in a thread of its own."""

    def __init__(self, app):
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on")
        self.server, self.begun = uvicorn.Server(config), threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.run(),))
        self.thread.start()
        self.begun.wait()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    async def run(self):
        self.loop, startup = asyncio.get_running_loop(), self.server.startup
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS

        async def begin(sockets=None):
            await startup(sockets)
            self.begun.set()

        self.server.startup = begin
        await self.server.serve()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path):
        return httpx.get(self.url(path), timeout=None)

    def in_background(self, path):
        """Send a request from a thread; returns what waits for its answer."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.get(path).json()))
        thread.start()

        def answer():
            thread.join()
            return answers[0]

        return answer

    def modes(self):
        """The modes of all threads of the pool, and of the loop's, each once."""

        async def visit():
            together = threading.Barrier(THREADS)

            def look():
                together.wait()
                return mode()

            looks = [anyio.to_thread.run_sync(look) for _ in range(THREADS)]
            return [mode(), *await asyncio.gather(*looks)]

        seen = asyncio.run_coroutine_threadsafe(visit(), self.loop).result()
        return [one for at, one in enumerate(seen) if one not in seen[:at]]

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def serve(app):
            server = Server(app)
            stack.callback(server.stop)
            return server

        yield serve


class Gate:
    """Where a handler waits until it is let go on."""

    def __init__(self):
        self.there, self.go_on = threading.Event(), threading.Event()

    def wait(self):
        self.there.set()
        self.go_on.wait()

    async def wait_async(self):
        self.there.set()
        await asyncio.get_running_loop().run_in_executor(None, self.go_on.wait)


class Halves:
    """A dependency whose second half runs in another thread than its first.

    Its endpoint is async: while that waits, another request takes the thread of the first half.
    """

    def __init__(self, serve, dependency):
        app, waiting, occupied, ended = FastAPI(), Gate(), Gate(), threading.Event()
        self.modes, self.errors, threads = [], [], []

        def halves():
            steps = dependency()
            threads.append(threading.get_ident())
            self.modes.append(next(steps))
            yield
            threads.append(threading.get_ident())
            try:
                next(steps, None)
            except RuntimeError as error:
                self.errors.append(str(error))
                raise
            finally:
                self.modes.append(mode())
                ended.set()

        @app.get("/depends")
        async def depends(_: Annotated[object, Depends(halves)]):
            await waiting.wait_async()
            return mode()

        @app.get("/occupy")
        def occupy():
            occupied.wait()
            return mode()

        @app.get("/plain")
        def plain():
            assert threading.get_ident() == threads[0]  # the pool takes the last one that was busy
            return mode()

        model = nn.Dropout()

        @app.get("/no_grad")
        @gradguard.no_grad
        def in_no_grad():
            return plain()

        @app.get("/inference_function")
        @gradguard.inference_function(modules=model)
        def in_inference_function():
            return plain()

        @app.get("/block")
        def block():
            with gradguard.inference_mode():
                return plain()

        self.server = serve(app)
        first = self.server.in_background("/depends")
        waiting.there.wait()
        other = self.server.in_background("/occupy")
        occupied.there.wait()
        waiting.go_on.set()
        self.in_endpoint = first()
        ended.wait()
        occupied.go_on.set()
        self.in_other = other()
        assert threads[0] != threads[1]

    def get(self, path):
        return self.server.get(path).json()


def under(guard):
    def dependency():
        with guard():
            yield mode()

    return dependency


HEALERS = {"/no_grad": NO_GRAD, "/inference_function": INFERENCE, "/block": INFERENCE}


@each_guard
@pytest.mark.parametrize("path", HEALERS)
def test_a_thread_of_the_pool_comes_back(serve, name, path):
    """Where a dependency has left its mode in a thread, the next guard in it brings its own back."""
    halves = Halves(serve, under(getattr(gradguard, name)))
    assert halves.modes == [INSIDE[name], RECORDS]
    assert (halves.in_endpoint, halves.in_other) == (RECORDS, INSIDE[name])
    assert halves.get("/plain") == INSIDE[name]  # nothing of gradguard's has run there
    assert halves.get(path) == HEALERS[path]
    assert halves.get("/plain") == RECORDS
    assert halves.server.modes() == [RECORDS]


@each_guard
def test_the_error_says_what_happened_and_what_to_do(serve, name):
    """It blames nobody's block, and names both remedies."""
    (error,) = Halves(serve, under(getattr(gradguard, name))).errors
    assert "was entered in another thread (AnyIO worker thread)" in error
    assert "the two halves of a `yield` dependency in two threads" in error
    assert (
        f"Decorate the function that needs the mode, for example the endpoint, with {name}" in error
    )
    assert "gradguard.carry(fn)" in error


@each_guard
def test_torchs_guard_leaves_the_thread_switched_for_good(serve, name):
    """The same with torch's: no error, and no later guard brings the thread's own mode back."""
    halves = Halves(serve, under(getattr(torch, name)))
    assert halves.errors == []
    for path in HEALERS:
        halves.get(path)
    assert halves.get("/plain") == INSIDE[name]


@each_guard
def test_a_decorated_dependency_has_its_own_mode_in_both_threads(serve, name):
    """And nobody else has it."""

    @getattr(gradguard, name)
    def dependency():
        yield mode()
        assert mode() == INSIDE[name]

    halves = Halves(serve, dependency)
    assert (halves.modes, halves.errors) == ([INSIDE[name], RECORDS], [])
    assert (halves.in_endpoint, halves.in_other) == (RECORDS, RECORDS)


@each_guard
def test_what_a_decorated_dependency_yields(serve, name):
    """FastAPI sees what kind of function it is: the value arrives, made under the guard."""
    app, guard = FastAPI(), getattr(gradguard, name)

    @guard
    def sync():
        yield mode()

    @guard
    async def as_task():
        yield mode()

    @app.get("/")
    def handler(one: Annotated[list, Depends(sync)], two: Annotated[list, Depends(as_task)]):
        return [one, two, mode()]

    assert serve(app).get("/").json() == [INSIDE[name], INSIDE[name], RECORDS]


@each_guard
def test_an_isolated_dependency_keeps_its_block_to_itself(serve, name):
    """Torch's guard as well as gradguard's, with no edit of its body."""
    for guards in (torch, gradguard):
        halves = Halves(serve, gradguard.isolated(under(getattr(guards, name))))
        assert (halves.modes, halves.errors) == ([INSIDE[name], RECORDS], [])
        assert (halves.in_endpoint, halves.in_other) == (RECORDS, RECORDS)


@each_framework
@each_guard
def test_the_remedies(serve, framework, name):
    """A decorated endpoint, sync or async, and a carried function have the mode; nobody else has."""
    guard = getattr(gradguard, name)

    @guard
    def sync(_):
        return JSONResponse(mode())

    @guard
    async def as_task(_):
        before = mode()
        await asyncio.sleep(0)
        return JSONResponse([before, mode()])

    async def carried(_):
        with guard():
            work = gradguard.carry(mode)
        return JSONResponse(await run_in_threadpool(work))

    server = serve(
        framework(routes=[Route(f"/{fn.__name__}", fn) for fn in (sync, as_task, carried)])
    )
    assert server.get("/sync").json() == INSIDE[name]
    assert server.get("/as_task").json() == [INSIDE[name]] * 2
    assert server.get("/carried").json() == INSIDE[name]
    assert server.modes() == [RECORDS]


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
@pytest.mark.parametrize(("guards", "after"), [(gradguard, RECORDS), (torch, NO_GRAD)])
def test_async_dependencies_that_overlap(serve, guards, after):
    """They share the loop's thread: at the end it has its own mode, where with torch's it has not."""
    app, gates, ended = FastAPI(), [Gate(), Gate()], [threading.Event(), threading.Event()]

    async def dependency(at: int):
        with guards.no_grad():
            yield
        ended[at].set()

    @app.get("/{at}")
    async def handler(at: int, _: Annotated[object, Depends(dependency)]):
        await gates[at].wait_async()
        return mode()

    server = serve(app)
    answers = []
    for at in (0, 1):
        answers.append(server.in_background(f"/{at}"))
        gates[at].there.wait()
    for at in (0, 1):
        gates[at].go_on.set()
        answers[at]()
        ended[at].wait()
    assert server.modes()[0] == after


def streams(guard, go_on=lambda: None):
    """A sync and an async stream of the mode of each part."""
    ended = threading.Event()

    @guard
    def parts():
        try:
            for _ in range(1000):
                yield f"{mode()};"
                go_on()
        finally:
            ended.set()

    @guard
    async def async_parts():
        try:
            for _ in range(1000):
                yield f"{mode()};"
                go_on()
                await asyncio.sleep(0)
        finally:
            ended.set()

    return {"sync": parts, "async": async_parts}, ended


@each_framework
@each_guard
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_and_its_background_task(serve, framework, name, kind):
    """Each part is made under the guard, in whatever thread; between them everybody has his own."""
    made, _ = streams(getattr(gradguard, name))
    after, there = [], threading.Event()

    @getattr(gradguard, name)
    def task():
        after.append(mode())
        there.set()

    async def stream(_):
        return StreamingResponse(made[kind](), background=BackgroundTask(task))

    server = serve(framework(routes=[Route("/", stream)]))
    with httpx.stream("GET", server.url("/"), timeout=None) as answer:
        text = answer.iter_text()
        begun = next(text)
        assert server.modes() == [RECORDS]
        assert begun + "".join(text) == f"{INSIDE[name]};" * 1000
    there.wait()
    assert after == [INSIDE[name]]
    assert server.modes() == [RECORDS]


@each_framework
@each_guard
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_client_that_goes_away(serve, framework, name, kind):
    """The stream ends, and no thread keeps its mode."""
    gone = threading.Event()
    made, ended = streams(getattr(gradguard, name), gone.wait if kind == "sync" else lambda: None)

    async def stream(_):
        return StreamingResponse(made[kind]())

    server = serve(framework(routes=[Route("/", stream)]))
    with httpx.stream("GET", server.url("/"), timeout=None) as answer:
        assert next(answer.iter_text()).startswith(f"{INSIDE[name]};")
    gone.set()
    while not ended.wait(0.1):
        gc.collect()  # a sync one that nobody closes
    assert server.modes() == [RECORDS]


@each_framework
def test_a_lifespan(serve, framework):
    """A block in it is the loop's thread's, not the pool's; a decorated one keeps its mode inside."""
    seen = []

    @contextlib.asynccontextmanager
    @gradguard.no_grad
    async def decorated(_):
        seen.append(mode())
        yield
        seen.append(mode())

    @contextlib.asynccontextmanager
    async def block(_):
        with gradguard.no_grad():
            yield

    server = serve(framework(lifespan=decorated))
    assert server.modes() == [RECORDS]
    server.stop()
    assert seen == [NO_GRAD, NO_GRAD]
    assert serve(framework(lifespan=block)).modes() == [NO_GRAD, RECORDS]
