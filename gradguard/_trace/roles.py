"""What a switch was part of, read from the frames of torch's and gradguard's own code."""

import sys
from types import FrameType

from gradguard._core.frames import is_ours, module_of
from gradguard._trace.open_switches import Deed, Role

_ROLES = {
    "__enter__": Role.ENTRY,
    "__exit__": Role.EXIT,
    "__init__": Role.CALL,  # set_grad_enabled; its `with` is the same object's
}


def deed_of(frame: FrameType | None, otherwise: Deed) -> Deed:
    """Return what the switch that `frame` makes is part of.

    That is the outermost of the guards' own functions that are now running: torch's
    ``no_grad.__enter__`` calls `set_grad_enabled`, which may have been rebound to gradguard's.
    """
    deed = otherwise
    while frame is not None and _is_of_a_guard(frame):
        role = _ROLES.get(frame.f_code.co_name)
        if role is not None:
            deed = Deed.by(role, frame.f_locals.get("self"))
        elif _is_decorated_call(frame):
            return _of_decorated_call(frame) if deed.key is None else deed
        frame = frame.f_back
    return deed


def _is_of_a_guard(frame: FrameType) -> bool:
    name = module_of(frame)
    return is_ours(name) or name == "torch.autograd.grad_mode"


def _is_decorated_call(frame: FrameType) -> bool:
    return frame.f_code.co_name == "wrapper" and module_of(frame) == "gradguard._core.fast_wrappers"


def _of_decorated_call(frame: FrameType) -> Deed:
    """Tell the entry of a decorated call from its exit: its link is on the chain in between."""
    link = frame.f_locals.get("link")
    on_chain = sys.modules["gradguard._core.guard_stack"].thread.cell[0] is link
    return Deed.by(Role.ENTRY if on_chain else Role.EXIT, link)
