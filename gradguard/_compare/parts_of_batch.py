"""The memory of a call at its peak, for parts of its batch: measured points for a prediction."""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from gradguard._compare.accelerator import accelerator
from gradguard._compare.larger_batch import BatchMemory
from gradguard._compare.measuring import Call, accelerator_peak
from gradguard._compare.putting_back import Restore
from gradguard._core.guards import enable_grad, no_grad
from gradguard._core.text import one_line
from gradguard._core.torch_versions import allocations, can_record_allocations
from gradguard._graph.tensors import tensors

_PARTS = 4  # a line through three points fits too easily


class Parts:
    """A call with parts of its batch: a quarter, a half, three quarters and all of it.

    The batch is the first dimension of the first tensor among the arguments, and of all tensors
    that have as many items in theirs. Without such a tensor, with fewer than four items, where the
    memory cannot be measured, and for what would be compiled for each size, there are no parts.

    Attributes:
        calls: the sizes, each with its call and the bytes of its inputs.
    """

    def __init__(
        self,
        fn: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        reachable: Iterable[object],
    ) -> None:
        given = [one for _, one in tensors((args, dict(kwargs))) if one.dim()]
        batch = len(given[0]) if given else 0
        self._device = given[0].device if given else torch.device("cpu")
        sizes = [batch * part // _PARTS for part in range(1, _PARTS + 1)]
        if batch < _PARTS or not _can_measure(self._device) or _is_compiled(fn, reachable):
            sizes = []
        self.calls: list[tuple[int, Call, int]] = []
        for size in sizes:
            cut = partial(_cut, batch=batch, size=size)
            call = partial(fn, *map(cut, args), **{name: cut(one) for name, one in kwargs.items()})
            bytes_in = sum(one.nbytes // len(one) * size for one in given if len(one) == batch)
            self.calls.append((size, call, bytes_in))

    @property
    def turns(self) -> int:
        """How often `measure` calls its `restore`."""
        return 2 * len(self.calls)

    def measure(self, restore: Restore) -> tuple[tuple[BatchMemory, ...], str]:
        """Measure each part with grad and under no_grad; where one fails, the reason."""
        points: list[BatchMemory] = []
        for size, call, bytes_in in self.calls:
            try:
                with_grad, without = (
                    bytes_in + _measured(call, guard, restore, self._device)
                    for guard in (enable_grad, no_grad)
                )
            except Exception as error:  # noqa: BLE001 (fn need not take another batch; it is told)
                said = one_line(f"{type(error).__name__}: {error}".splitlines()[0])
                return (), f"fn takes no batch of {size} ({said})"
            points.append(BatchMemory(size, with_grad, without))
        return tuple(points), ""


def _measured(call: Call, guard: Callable[[], Any], restore: Restore, device: torch.device) -> int:
    restore()
    with enable_grad(), guard():
        return _peak(call, device)


def _can_measure(device: torch.device) -> bool:
    if device.type == "cpu":
        return can_record_allocations()
    return hasattr(accelerator(), "max_memory_allocated")


def _peak(call: Call, device: torch.device) -> int:
    """Return the most bytes that the call has on the device at one time."""
    if device.type == "cpu":
        return max(accumulate(allocations(call)), default=0)
    return accelerator_peak(call)[1] or 0


def _is_compiled(fn: object, reachable: Iterable[object]) -> bool:
    """Tell whether a call would be compiled anew for each size."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    if hasattr(fn, "_torchdynamo_orig_callable"):
        return True
    modules = (m for one in reachable if isinstance(one, nn.Module) for m in one.modules())
    compiled = dynamo.OptimizedModule
    return any(
        isinstance(one, compiled) or vars(one).get("_compiled_call_impl") is not None
        for one in modules
    )


def _cut(value: Any, *, batch: int, size: int) -> Any:
    """Return the value with the first items of each tensor that has a whole batch of them."""
    if size == batch:
        return value
    if isinstance(value, Tensor):
        whole = value.dim() and len(value) == batch
        return value.detach()[:size].requires_grad_(value.requires_grad) if whole else value
    cut = partial(_cut, batch=batch, size=size)
    if type(value) in (list, tuple):
        return type(value)(map(cut, value))
    if type(value) is dict:
        return {key: cut(one) for key, one in value.items()}
    return value
