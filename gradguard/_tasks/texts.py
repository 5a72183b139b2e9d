"""What ``carry``, ``isolated`` and ``isolate_tasks`` say when they are used wrongly."""

from reprlib import repr as shortened

_SUSPENDED = "a generator, coroutine or async generator function"


def carrying(fn: object) -> str:
    """Return what a carried function's mode is called in lists of open guards."""
    return f"carry({_name(fn)})"


def _name(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or f"{type(fn).__qualname__} object"


def _of_type(value: object) -> str:
    return f"{shortened(value)} of type {type(value).__name__}"


def cannot_carry(value: object) -> str:
    """Name the value that cannot be called, and say what to pass."""
    return (
        f"carry() cannot carry a mode into {_of_type(value)}, which is not callable. Pass the "
        "function itself, and its arguments to whatever runs it: executor.submit(carry(fn), *args)."
    )


def cannot_carry_class(cls: type) -> str:
    """Name the class, and say how to carry a method or the construction."""
    name = cls.__qualname__
    return (
        f"carry() cannot carry a mode into the class {name}: only its constructor would be "
        f"covered. Carry a method of an instance, carry({name}(...).method), or, to construct it "
        f"in the other thread, carry(lambda: {name}(...))."
    )


def cannot_pickle(fn: object) -> str:
    """Say why a carried function stays in its process, and what to do in a process pool."""
    return (
        f"{carrying(fn)} cannot be pickled: the mode that it carries belongs to a thread of this "
        "process. carry() is for threads and tasks. For a process pool, decorate the function that "
        "runs there with gradguard.no_grad or another guard."
    )


def cannot_isolate(value: object) -> str:
    """Name the value that cannot be called, and say what to decorate."""
    found = f"{_of_type(value)}, which is not callable"
    return f"isolated() cannot isolate {found}. Decorate {_SUSPENDED}."


def cannot_isolate_class(cls: type) -> str:
    """Name the class, and say what to decorate in it."""
    return (
        f"isolated() cannot isolate the class {cls.__qualname__}. Decorate those of its methods "
        f"that yield or await: each must be {_SUSPENDED}."
    )


def never_suspended(fn: object) -> str:
    """Name the plain function, and say what to use for what may have been meant."""
    return (
        f"isolated() cannot isolate {_name(fn)}: it is not {_SUSPENDED}, so it is never suspended. "
        "If it returns one of these running, decorate the function that makes it. To run it under "
        "a mode of its own, decorate it with gradguard.no_grad or another guard; to run it in "
        "another thread under this one's mode, use gradguard.carry; to have a mode that it leaves "
        "switched put back, gradguard.leak_check."
    )


def no_running_loop() -> str:
    """Say where to call it."""
    return (
        "isolate_tasks() found no running event loop in this thread. Call it in a coroutine that "
        "the loop runs, first thing in main(), or name the loop: isolate_tasks(loop)."
    )


def not_a_loop(value: object) -> str:
    """Name the value, and say what to pass."""
    return (
        f"isolate_tasks(loop) takes an asyncio event loop, not {_of_type(value)}. In a coroutine, "
        "leave it out: isolate_tasks()."
    )
