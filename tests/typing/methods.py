"""What type checkers must see through the method decorators: checked by mypy and pyright, never run."""

from collections.abc import AsyncIterator, Iterator

import torch
from typing_extensions import assert_type

from gradguard import evaluating, inference_function, inference_method, training_method


class Net(torch.nn.Module):
    @inference_method
    def predict(self, x: torch.Tensor, top: int = 1) -> list[int]:
        return []

    @inference_method(mode="no_grad", autocast=torch.bfloat16, keep_eval=True)
    def stream(self, n: int) -> Iterator[str]:
        yield ""

    @inference_method(module=("a", "b.c"))
    async def answer(self, q: str) -> str:
        return q

    @inference_method()
    async def tokens(self, q: str) -> AsyncIterator[int]:
        yield 1

    @training_method
    def step(self, batch: int) -> dict[str, torch.Tensor]:
        return {}

    @training_method(module="net")
    async def astep(self, batch: int) -> torch.Tensor:
        return torch.ones(1)

    @property
    @inference_method
    def size(self) -> int:
        return 1

    @classmethod
    @inference_method(module="net")
    def made(cls, a: int) -> str:
        return ""


net = Net()


@inference_function
def predict(model: torch.nn.Module, x: torch.Tensor) -> list[int]:
    return []


@inference_function(modules=(net, "encoder"), mode="no_grad", keep_eval=True)
async def tokens_of(encoder: torch.nn.Module, q: str) -> AsyncIterator[int]:
    yield 1


with evaluating(net) as same:
    assert_type(same, Net)
with evaluating(net, net) as both:
    assert_type(both, tuple[torch.nn.Module, ...])


@evaluating(net)
def validate(a: int) -> float:
    return 0.0


async def use() -> None:
    assert_type(net.predict(torch.ones(1), top=2), list[int])
    assert_type(net.stream(1), Iterator[str])
    assert_type(await net.answer("q"), str)
    assert_type(net.tokens("q"), AsyncIterator[int])
    assert_type(net.step(1), dict[str, torch.Tensor])
    assert_type(await net.astep(1), torch.Tensor)
    assert_type(validate(1), float)
    assert_type(net.size, int)
    assert_type(Net.made(1), str)
    assert_type(predict(net, x=torch.ones(1)), list[int])
    assert_type(tokens_of(net, q="q"), AsyncIterator[int])
    predict(torch.ones(1), net)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    inference_function(modules=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    net.predict("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    net.stream()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    inference_method(mode="nograd")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
