"""Every call of a module, seen by one function in the place of `nn.Module.__call__`.

Not torch's global forward hooks: with any of these each call of each module takes the long way
through `_call_impl`, which costs a loop of tiny modules half its time again. Modules inside another
that were seen before, in these modes, are let through at once.

Dynamo follows the test whether it compiles, and compiles what it would without all this.
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from gradguard._core.state import (
    is_dynamo_compiling,
    is_grad_enabled,
    is_inference_mode_enabled,
)
from gradguard._judge.facts import Forward
from gradguard._judge.judge import Judge
from gradguard._run.left_mode_recorded import left


class Running(threading.local):
    """What runs in a thread."""

    def __init__(self) -> None:
        self.forward: Forward | None = None  # the one that the program itself called
        self.inside: set[int] | None = None  # the modules seen inside it; None: no forward runs
        self.backward = 0  # how many calls of autograd
        self.flags = False  # whether train() or eval() goes through a module's children


def replacement(  # noqa: C901 (one function, for the time of its calls)
    judge: Judge, running: Running, original: Callable[..., Any], attempt: Callable[..., None]
) -> Callable[..., Any]:
    """Make what stands in the place of `nn.Module.__call__`."""
    of = judge.scene.modules.of
    by_id = judge.scene.modules.by_id
    # torch's own does no more than choose between two; to call it costs a frame for each module.
    plain = getattr(original, "__code__", None) is _TORCHS

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 (its place)
        if not is_dynamo_compiling():
            inside = running.inside
            if inside is None:
                if not running.backward:
                    return outermost(self, sys._getframe(1), args, kwargs)  # noqa: SLF001
            elif id(self) not in inside:
                judge.scene.modules.seen_inside(self, inside)
                attempt(judge.ran_inside, self, running.forward, sys._getframe(1))  # noqa: SLF001
        if not plain:
            return original(self, *args, **kwargs)
        if self._compiled_call_impl is not None:
            return self._compiled_call_impl(*args, **kwargs)
        return self._call_impl(*args, **kwargs)

    def outermost(self: nn.Module, frame: FrameType, args: Any, kwargs: Any) -> Any:
        recorded = is_grad_enabled() and not is_inference_mode_enabled()
        training = self.training
        seen = by_id.get(id(self)) or of(self)
        forward = Forward(self, training, recorded, frame)
        inside = (seen.known or seen.known_inside())[recorded + 2 * training]
        if id(self) not in inside:
            inside.add(id(self))
            attempt(judge.began, forward)
        running.forward, running.inside = forward, inside
        try:
            if plain and self._compiled_call_impl is None:
                output = self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            else:
                output = original(self, *args, **kwargs)
        except RuntimeError as error:
            attempt(judge.inference.failed, forward, error)
            raise
        finally:
            running.forward = running.inside = None  # a frame keeps all its locals alive
        if not recorded:
            forward.left = left(frame)
        attempt(judge.ended, forward, output)
        return output

    return __call__


_TORCHS = nn.Module.__call__.__code__
