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

# Errors.
errors: list[type[AssertionError]] = [GradModeError, GradLeakError]
warning: type[UserWarning] = GradModeWarning
