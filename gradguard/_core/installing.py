"""``install``: gradguard's guards in torch's places, for the whole process."""

import functools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from typing_extensions import Self

from gradguard._core import decorating
from gradguard._core.guards import enable_grad, inference_mode, no_grad, set_grad_enabled
from gradguard._core.torch_versions import TORCH_GUARDS

_OURS: dict[str, Callable[..., Any]] = {
    "no_grad": no_grad,
    "enable_grad": enable_grad,
    "set_grad_enabled": set_grad_enabled,
    "inference_mode": inference_mode,
}
# Where torch itself exports the four names.
_PLACES: tuple[ModuleType, ...] = (torch, torch.autograd, torch.autograd.grad_mode)
# Dynamo looks `clone` up on what `inference_mode` is bound to, and crashes where there is none.
_CLONE = TORCH_GUARDS["inference_mode"].clone  # type: ignore[attr-defined]
_lock = threading.RLock()
_script: Any = torch.jit.script


class Installed:
    """What `install` returns: it puts torch's guards back, by `uninstall` or as a ``with`` block.

    A handle of an `install` that found gradguard's guards in place already has nothing to undo.
    """

    def __init__(self, *, first: bool) -> None:
        self._first = first

    def uninstall(self) -> None:
        """Put torch's own guards back; a second time nothing happens."""
        with _lock:
            if self._first:
                self._first = False
                _put(_OURS, TORCH_GUARDS)
                if torch.jit.script is _script_torchs_guards:
                    torch.jit.script = _script
                decorating.refuses_classes = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()


Installed.__module__ = "gradguard"


def install() -> Installed:
    """Put gradguard's four guards in the places of torch's, for the whole process.

    ``torch.no_grad``, ``torch.enable_grad``, ``torch.set_grad_enabled`` and
    ``torch.inference_mode`` are gradguard's from now on, in `torch.autograd` and
    `torch.autograd.grad_mode` as well: a project and its libraries are switched without an edit.
    What was decorated, or imported by name, before keeps torch's: call this first thing in the
    program. A class under a guard, which gradguard refuses elsewhere, gets a `GradModeWarning`,
    and only its constructor is covered, as by torch. What `torch.jit.script` compiles sees torch's
    own guards. A second call changes nothing.

    Not covered: ``isinstance`` against the four names, and classes derived from them. A guard of
    torch's own that was bound before breaks the graph in what `torch.compile` compiles after.

    Returns:
        A handle with `uninstall()`, that is also a context manager.

    >>> import gradguard, torch
    >>> with gradguard.install():
    ...     with torch.no_grad():
    ...         gradguard.guards()
    (no_grad(),)
    >>> with torch.no_grad():
    ...     gradguard.guards()
    ()
    """
    with _lock:
        first = decorating.refuses_classes
        _put(TORCH_GUARDS, _OURS)
        decorating.refuses_classes = False
        inference_mode.clone = _CLONE  # type: ignore[attr-defined]
        if torch.jit.script is _script:
            torch.jit.script = _script_torchs_guards
    return Installed(first=first)


install.__module__ = "gradguard"


def _put(old: Any, new: Any) -> None:
    for place in _PLACES:
        for name in _OURS:
            if vars(place).get(name) is old[name]:
                setattr(place, name, new[name])


@contextmanager
def _torchs_guards() -> Generator[None]:
    with _lock:
        outermost = vars(torch)["no_grad"] is no_grad  # else it has called itself
        if outermost:
            _put(_OURS, TORCH_GUARDS)
        try:
            yield
        finally:
            if outermost:
                _put(TORCH_GUARDS, _OURS)


@functools.wraps(_script)
def _script_torchs_guards(*args: Any, _frames_up: int = 0, **kwargs: Any) -> Any:
    """Compile with torch's guards bound: TorchScript compiles the source of what it finds.

    ``torch.distributed.optim`` scripts such bodies while it is imported.
    """
    with _torchs_guards():  # it looks names up in the frame that calls it, this one's caller
        return _script(*args, _frames_up=_frames_up + 1, **kwargs)
