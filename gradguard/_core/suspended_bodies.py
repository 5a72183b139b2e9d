"""Stepping a generator, coroutine or async generator under its own mode: one mechanism for all."""

from collections.abc import Callable
from typing import Any
from weakref import ref

from gradguard._core.abandoned import own_cell
from gradguard._core.guard_stack import Link, fast, links, suspended_in_blocks, thread
from gradguard._core.state import (
    enter_inference,
    exit_inference,
    is_any_autocast_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)
from gradguard._core.suspended_modes import SuspendedMode
from gradguard._core.torch_versions import GRAPHS_DEFER_GRAD, grad_is_deferred


class Body(SuspendedMode):
    """One body under its own mode; its usual steps are written out, as most cost nothing else."""

    __slots__ = ()

    def step(  # noqa: C901, PLR0912
        self, call: Callable[[Any], Any], passed: list[Any], *, more: bool = False
    ) -> Any:
        """As `Suspendable.step`."""
        if GRAPHS_DEFER_GRAD and grad_is_deferred():
            return super().step(call, passed, more=more)
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        below = cell[0]
        grad, inference = is_grad_enabled(), is_inference_mode_enabled()
        top: Link | None = None
        left = False
        try:
            try:
                mode = self._mode
                if mode is not None and mode == self._steady and self._inference is inference:
                    return self._step_in_inference(cell, grad, call, passed)
                if mode is None or self._tokens or mode[1] is not inference:
                    self.resume()
                    top = None if self._tokens or mode is not None else cell[0]
                else:
                    if mode[0] is not grad:
                        set_grad(mode[0])
                    self._outside = inference
                    self._base = top = (self, grad, None, below)
                    for guard, found in self._plain:
                        top = (guard, found, None, top)
                    cell[0] = top
                result = call(passed.pop())
                if cell[0] is top and is_inference_mode_enabled() is inference:
                    self._mode = mode = is_grad_enabled(), inference
                    cell[0], self._base = below, None
                    if mode[0] is not grad:
                        set_grad(grad)
                else:
                    self.suspend()
            except BaseException as error:
                stops = type(error) is StopIteration
                usual = stops and top is not None and cell[0] is top
                self._leave(below, grad, inference, over=usual and not more)
                left = True
                if not (stops and more):
                    suspended_in_blocks.discard(self)
                raise
        except BaseException:
            if not left:  # an interrupt in the midst of it
                self._leave(below, grad, inference)
            raise
        finally:
            del call  # that of an async generator holds the error, too
        return result

    def _step_in_inference(
        self, cell: list[Link | None], grad: bool, call: Callable[[Any], Any], passed: list[Any]
    ) -> Any:
        """Step where an inference block is innermost, and all below it did not switch that mode."""
        guard, found, owner, _ = asleep = self._own[0]
        self._autocast, self._outside = is_any_autocast_enabled(), self._inference
        keeper: Any = None if owner is True else owner
        itself = None if keeper is None else ref(keeper)
        base: Link = (self, grad, None, cell[0])
        top = base
        for each, its_found in self._plain:
            top = (each, its_found, None, top)
        if (found is True) is not grad:
            set_grad(found is True)  # what the token brings back
        token = enter_inference(True)
        if keeper is None:
            top = (guard, found, token, top)
        else:
            keeper.token = token
            keeper.link = top = (guard, found, itself, top)
        self._base, cell[0] = base, top
        result = call(passed.pop())
        mode = is_grad_enabled(), is_inference_mode_enabled()
        if cell[0] is not top or self._autocast or is_any_autocast_enabled():
            self.suspend()
            return result
        self._mode, cell[0], self._base = mode, base[3], None
        if keeper is not None:
            keeper.link = asleep
        exit_inference(token, None, None, None)
        set_grad(grad)  # make_fx and torch.export see no other way back
        return result

    def _leave(
        self, below: Link | None, grad: bool, inference: bool, *, over: bool = False
    ) -> None:
        """Bring back the outside's mode: after an error, which may have come at any point."""
        if not over and any(link[0] is self for link in links()):
            self.suspend()
        elif over or thread.cell[0] is below:
            thread.cell[0] = below
            if is_inference_mode_enabled() is not inference:
                set_inference(inference)
            set_grad(grad)
