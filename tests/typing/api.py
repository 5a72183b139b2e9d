"""Every form of every public name, for mypy and pyright strict: checked, never run."""

from collections.abc import AsyncIterator, Callable, Iterator

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gradguard
from gradguard import (
    GradLeakError,
    GradModeError,
    GradModeWarning,
    GradState,
    enable_grad,
    inference_mode,
    leak_check,
    no_grad,
    set_grad_enabled,
)

# As context managers, one object or several, nested.
with no_grad(), enable_grad(), inference_mode(), inference_mode(False), inference_mode(mode=True):
    pass
with set_grad_enabled(True), set_grad_enabled(mode=False):
    pass
set_grad_enabled(False)
stored = no_grad()
with stored, stored:
    pass


# As decorators: what is decorated keeps its type.
@no_grad
def bare(x: Tensor, *, twice: bool = False) -> Tensor:
    return x * 2 if twice else x


@enable_grad()
def called(x: int) -> str:
    return str(x)


@inference_mode
def inferred(x: Tensor) -> Tensor:
    return x


@inference_mode()
async def coroutine(x: Tensor) -> Tensor:
    return x


@set_grad_enabled(False)
def generator(n: int) -> Iterator[int]:
    yield n


@no_grad()
async def async_generator(n: int) -> AsyncIterator[int]:
    yield n


class Model(nn.Module):
    """Methods of every kind."""

    @no_grad()
    def predict(self, x: Tensor) -> Tensor:
        return x

    @inference_mode()
    @classmethod
    def make(cls, n: int) -> "Model":
        return cls()

    @no_grad()
    @staticmethod
    def twice(x: Tensor) -> Tensor:
        return x * 2

    @property
    @no_grad()
    def norm(self) -> float:
        return 1.0


async def decorated(x: Tensor) -> None:
    """What type checkers see of each."""
    assert_type(bare(x, twice=True), Tensor)
    assert_type(called(3), str)
    assert_type(inferred(x), Tensor)
    assert_type(await coroutine(x), Tensor)
    assert_type(generator(3), Iterator[int])
    assert_type(async_generator(3), AsyncIterator[int])
    assert_type(Model().predict(x), Tensor)
    assert_type(Model.make(3), Model)
    assert_type(Model.twice(x), Tensor)
    assert_type(Model().norm, float)


typed: Callable[[int], str] = no_grad()(called)
lambda_result: int = no_grad(lambda: 3)()

# Wrong calls are errors for the checkers, too.
bare(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
set_grad_enabled("yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# State.
assert_type(gradguard.grad_state(), GradState)
assert_type(gradguard.grad_state().grad_enabled, bool)
assert_type(gradguard.grad_state().inference_mode, bool)
repr(gradguard.guards()[0])

# Assertions.
model = Model()
gradguard.assert_grad_enabled()
gradguard.assert_no_grad()
gradguard.assert_inference_mode()
gradguard.assert_trainable(model, frozen=["encoder.*"])
gradguard.assert_parameters_used(torch.ones(()), model, allow=["head.*"])
gradguard.assert_gradients(model, allow=())
gradguard.assert_detached({"loss": [torch.ones(())]})
with leak_check(model), leak_check():
    pass


@leak_check(model)
def checked(x: int) -> str:
    return str(x)


assert_type(checked(3), str)
with gradguard.evaluating(model):
    pass

# Watches, trace and measurements.
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
found: list[GradModeError] = []
with gradguard.watch_training(model, optimizer, allow=["a.*"], patience=2) as training:
    assert_type(training.steps, int)
    assert_type(training.report(), str)
with gradguard.watch_inference(model, on_violation=found.append) as serving:
    assert_type(serving.forwards, int)
    assert_type(serving.violations, int)
gradguard.watch_inference(model, on_violation="explode")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with gradguard.trace() as switches:
    for switch in switches:
        assert_type(switch.filename, str)
        assert_type(switch.lineno, int)
        assert_type(switch.before, GradState)
    switches.export_chrome_trace("trace.json")
comparison = gradguard.compare_modes(model, (torch.ones(1),), repeats=3)
assert_type(str(comparison), str)


# Model methods keep their types.
class Server(nn.Module):
    """Methods for serving and training."""

    @gradguard.inference_method
    def predict(self, x: Tensor, *, top: int = 1) -> list[Tensor]:
        return [x] * top

    @gradguard.inference_method(mode="no_grad", autocast=torch.bfloat16, keep_eval=True)
    def stream(self, n: int) -> Iterator[int]:
        yield n

    @gradguard.inference_method(mode="inference_mode")
    async def answer(self, x: Tensor) -> Tensor:
        return x

    @gradguard.inference_method()
    async def answers(self, n: int) -> AsyncIterator[int]:
        yield n

    @gradguard.training_method
    def training_step(self, batch: Tensor) -> Tensor:
        return batch.sum()


class Holder:
    """An object that holds a module."""

    net = Server()

    @gradguard.inference_method(module="net")
    def predict(self, x: Tensor) -> Tensor:
        return x


async def served(x: Tensor) -> None:
    """What type checkers see of the methods."""
    server = Server()
    assert_type(server.predict(x, top=2), list[Tensor])
    assert_type(server.stream(3), Iterator[int])
    assert_type(await server.answer(x), Tensor)
    assert_type(server.answers(3), AsyncIterator[int])
    assert_type(server.training_step(x), Tensor)
    assert_type(Holder().predict(x), Tensor)


# Threads and tasks.
@gradguard.isolated
async def task(x: int) -> str:
    return str(x)


@gradguard.isolated
def numbers(n: int) -> Iterator[int]:
    yield n


async def crossed() -> None:
    """What is carried or isolated keeps its type."""
    gradguard.isolate_tasks()
    assert_type(await task(3), str)
    assert_type(numbers(3), Iterator[int])


assert_type(gradguard.carry(called)(3), str)

# Errors.
errors: list[type[AssertionError]] = [GradModeError, GradLeakError]
warning: type[UserWarning] = GradModeWarning
