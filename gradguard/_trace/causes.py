"""What a switch was part of, read from the frames of torch's and gradguard's own code."""

from types import FrameType

from gradguard._core.frames import is_ours, module_of
from gradguard._core.guard_stack import thread
from gradguard._core.wrappers import decorated_call, is_decorated_call
from gradguard._trace.open_switches import Cause, Role

_ROLES = {
    "__enter__": Role.ENTRY,
    "__exit__": Role.EXIT,
    "__init__": Role.CALL,  # set_grad_enabled; its `with` is the same object's
}


def cause_of(frame: FrameType | None, otherwise: Cause) -> Cause:
    """Return what the switch that `frame` makes is part of.

    That is the outermost of the guards' own functions that are now running: torch's
    ``no_grad.__enter__`` calls `set_grad_enabled`, which may have been rebound to gradguard's.
    """
    cause = otherwise
    while frame is not None and _is_of_a_guard(frame):
        role = _ROLES.get(frame.f_code.co_name)
        if role is not None:
            cause = Cause.by(role, _first_argument(frame))
        elif is_decorated_call(frame):
            return _of_decorated_call(frame) if cause.key is None else cause
        frame = frame.f_back
    return cause


def _is_of_a_guard(frame: FrameType) -> bool:
    name = module_of(frame)
    return is_ours(name) or name == "torch.autograd.grad_mode"


def _first_argument(frame: FrameType) -> object:
    return frame.f_locals.get(frame.f_code.co_varnames[0])


def _of_decorated_call(frame: FrameType) -> Cause:
    """Tell the entry of a decorated call from its exit: its link is on the chain in between."""
    call = decorated_call(frame)
    link = None if call is None else call.link
    return Cause.by(Role.ENTRY if thread.cell[0] is link else Role.EXIT, link)
