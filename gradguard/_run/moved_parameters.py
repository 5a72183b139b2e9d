"""Parameters converted, copied and taken out of their places: what no hook of torch's shows."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from gradguard._core.state import is_dynamo_compiling, is_inference_mode_enabled
from gradguard._core.torch_versions import CONVERTS
from gradguard._judge.judge import Judge
from gradguard._judge.lines import here
from gradguard._trace.patching import Patches

T = TypeVar("T")


def parameters_moved(patches: Patches, judge: Judge, attempt: Callable[..., None]) -> None:
    """See them."""
    moving = _Moving(judge, attempt)
    patches.replace(nn.Module, CONVERTS, moving.converting)
    patches.replace(nn.Module, "__delattr__", moving.deleting)
    patches.replace(nn.Parameter, "__deepcopy__", moving.copying)


class _Moving:
    """Makes what stands in the place of methods of torch."""

    def __init__(self, judge: Judge, attempt: Callable[..., None]) -> None:
        self._judge = judge
        self._attempt = attempt

    def converting(self, original: Callable[..., T]) -> Callable[..., T]:
        """Tell what a conversion replaces, and what it makes in inference mode."""

        @functools.wraps(original)
        def _apply(module: nn.Module, *args: Any, **kwargs: Any) -> T:
            before = dict(module._parameters.items())  # noqa: SLF001 (its own: the children come here, too)
            result = original(module, *args, **kwargs)
            for name, old in before.items():
                after = module._parameters  # noqa: SLF001
                if old is not None and name in after and after[name] is not old:
                    self._attempt(self._judge.places.converted, module, name, old, here())
            if is_inference_mode_enabled():
                made = [*module.parameters(), *module.buffers()]
                self._attempt(self._judge.inference.created, made, here())
            return result

        return _apply

    def copying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Tell what is copied in inference mode."""

        @functools.wraps(original)
        def __deepcopy__(parameter: Tensor, memo: Any) -> Any:  # noqa: N807 (its place)
            result = original(parameter, memo)
            if is_inference_mode_enabled():
                self._attempt(self._judge.inference.created, [result], here())
            return result

        return __deepcopy__

    def deleting(self, original: Callable[..., T]) -> Callable[..., T]:
        """Tell what is deleted from a module."""

        @functools.wraps(original)
        def __delattr__(module: nn.Module, name: str) -> T:  # noqa: N807 (its place)
            if not is_dynamo_compiling():
                self._attempt(self._judge.places.deleted, module, name)
            return original(module, name)

        return __delattr__
