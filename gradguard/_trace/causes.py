"""What a switch was part of, read from the frames of torch's and gradguard's own code."""

from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CodeType, FrameType

from gradguard._core.frames import is_ours, module_of
from gradguard._core.guard_stack import thread
from gradguard._core.wrappers import decorated_call, is_decorated_call
from gradguard._trace.open_switches import Cause, Role
from gradguard._trace.switch import Holder

_ROLES = {
    "__enter__": Role.ENTRY,
    "__exit__": Role.EXIT,
    "__init__": Role.CALL,  # set_grad_enabled; its `with` is the same object's
}
_BY_WITH = ("__enter__", "__aenter__")
_ENTERING = (*_BY_WITH, "enter_context", "enter_async_context")
_FAR = 12  # frames from a guard to the block that a context manager of the user's opens
_MOST_CODE = 10_000  # code may be made anew again and again
# What a code is to a guard, by id: the hash of a code goes over all of it.
_guards: dict[int, tuple[CodeType, "Role | bool"]] = {}
_torchs: dict[int, tuple[CodeType, bool]] = {}
_GENERATORS = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR


def cause_of(frame: FrameType | None, otherwise: Cause) -> tuple[Cause, FrameType | None]:
    """Return what the switch that `frame` makes is part of, and the frame that uses the guard.

    That is the outermost of the guards' own functions that are now running: torch's
    ``no_grad.__enter__`` calls `set_grad_enabled`, which may have been rebound to gradguard's.
    """
    outermost: tuple[Role, FrameType] | None = None
    decorated: Cause | None = None
    while frame is not None and (part := _part_of_a_guard(frame)):
        if part is not True:
            outermost = part, frame
        elif frame.f_code.co_name == "wrapper" and is_decorated_call(frame):
            if outermost is None and otherwise.key is None:
                decorated = _of_decorated_call(frame)
            frame = frame.f_back
            break
        frame = frame.f_back
    if outermost is not None:
        return Cause.by(outermost[0], _first_argument(outermost[1])), frame
    return decorated or otherwise, frame


def holder_of(frame: FrameType | None, role: Role) -> Holder | None:
    """Return whose block a switch opens, None where it is a plain call.

    ``guard.__enter__()`` called by hand opens none. Where a context manager of the user's switches
    as it is entered, by whatever guard or call, the block is that of its own ``with``.
    """
    if role is Role.ENTRY and frame is not None and is_plain(frame.f_code):
        return Holder(frame.f_code)  # by far the most: a `with` that ends before its function does
    holder: Holder | None = None
    found = frame
    for _ in range(_FAR):
        if found is None:
            break
        if found.f_code.co_name in _ENTERING and found.f_back is not None:
            by_with = found.f_code.co_name in _BY_WITH
            holder = Holder(found.f_back.f_code, found.f_back.f_lasti if by_with else None)
        found = found.f_back
    if holder is not None:
        return holder
    if frame is None or role is not Role.ENTRY or "__enter__" in frame.f_code.co_names:
        return None
    return Holder(frame.f_code)


def is_call_of_torchs(frame: FrameType) -> bool:
    """Tell whether `frame` switches by a plain call of torch's own, as `cause_of` would find."""
    part = _part_of_a_guard(frame)
    if part is Role.CALL and frame.f_back is not None:
        frame = frame.f_back
        part = _part_of_a_guard(frame)
    return not part and is_torchs(frame)


def is_plain(code: CodeType) -> bool:
    """Tell whether the `with` blocks of a function end before it does, whoever calls it."""
    entering = code.co_name in _ENTERING or "__enter__" in code.co_names
    return not entering and not code.co_flags & _GENERATORS


def can_be_suspended_in_with(code: CodeType) -> bool:
    """Tell whether a function can be suspended in a block, each of which ends before it returns."""
    return bool(code.co_flags & _GENERATORS) and not {*_ENTERING} & {*code.co_names}


def is_torchs(frame: FrameType | None) -> bool:
    """Tell whether a plain call that switches is torch's own."""
    if frame is None:
        return False
    code = frame.f_code
    known = _torchs.get(id(code))
    if known is None or known[0] is not code:
        if len(_torchs) > _MOST_CODE:
            _torchs.clear()
        known = _torchs[id(code)] = (code, module_of(frame).partition(".")[0] == "torch")
    return known[1]


def _part_of_a_guard(frame: FrameType) -> "Role | bool":
    """Return the part of a guard that a frame runs, True for another of its functions."""
    code = frame.f_code
    known = _guards.get(id(code))
    if known is None or known[0] is not code:
        name = module_of(frame)
        if len(_guards) > _MOST_CODE:
            _guards.clear()
        of_a_guard = is_ours(name) or name == "torch.autograd.grad_mode"
        known = _guards[id(code)] = (code, of_a_guard and _ROLES.get(code.co_name, True))
    return known[1]


def _first_argument(frame: FrameType) -> object:
    return frame.f_locals.get(frame.f_code.co_varnames[0])


def _of_decorated_call(frame: FrameType) -> Cause:
    """Tell the entry of a decorated call from its exit: its link is on the chain in between."""
    call = decorated_call(frame)
    link = None if call is None else call.link
    return Cause.by(Role.ENTRY if thread.cell[0] is link else Role.EXIT, link)
