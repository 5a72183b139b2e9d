"""What differs between versions of torch, and what of torch is private: each with its reason.

Nothing else in the package asks for a version. Where torch can be asked what it can do without
work, it is asked; nothing here compiles or imports Dynamo, which takes seconds.

Everything is bound once, at import: a project may rebind ``torch.no_grad`` and the others to
gradguard's, and a look-up at run time would then find gradguard itself and recurse.
"""

from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any, Protocol, TypeVar

import torch

# What marks code that Dynamo leaves alone. `torch.compiler.disable` would import Dynamo, and set
# and put back its hook at each call.
from torch._C._dynamo import eval_frame

# Dynamo itself switches modes while it compiles, in torch's own functions: only this tells.
from torch._guards import CompileContext

# The only switches of inference mode that Dynamo can follow inside a class.
from torch.autograd.grad_mode import _enter_inference_mode as switch_inference
from torch.autograd.grad_mode import _exit_inference_mode as switch_inference_back

# torch.is_autocast_enabled(device) asks for one device type at twice the cost.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # noqa: SLF001 (see above)

# torch.set_grad_enabled(mode) does the same at five times the cost: it builds a guard object that
# nobody uses. Dynamo, make_fx and torch.export all follow this name.
set_grad = torch._C._set_grad_enabled  # noqa: SLF001 (see above)

# torch's own four guards, also where a project has rebound their names since.
TORCH_GUARDS: Mapping[str, type] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": torch.set_grad_enabled,
    "inference_mode": torch.inference_mode,
}

# The class of what switches inference mode. torch has no public way to do it but
# torch.inference_mode, whose exit cannot be told which state to bring back.
INFERENCE_TOKEN = torch._C._InferenceMode  # noqa: SLF001 (see above)

# Up to 2.12 Dynamo puts `switch_inference` into its graph as any other function and runs it on
# fake tensors: "INTERNAL ASSERT FAILED", and every later backward() of the process fails with it.
# From 2.13 on it has a handler for it (torch/_dynamo/variables/torch.py,
# `handle_enter_inference_mode`). Whether it has cannot be asked without importing Dynamo.
DYNAMO_FOLLOWS_INFERENCE = torch.__version__ >= "2.13"  # a TorchVersion: by number

# From 2.7 on Dynamo follows a contextlib.contextmanager, without splitting it at a graph break as a
# block of torch's own. Not asked, for the same reason.
DYNAMO_FOLLOWS_CONTEXTMANAGER = torch.__version__ >= "2.7"

# Up to 2.6 Dynamo runs a generator to its end where it is made, drops what came before an error and
# fails at one that has a value to return. A decorated one breaks the graph there, as torch's does.
DYNAMO_STEPS_GENERATORS = torch.__version__ >= "2.7"

# Up to 2.8 make_fx (pre_dispatch) and torch.export write a call of `set_grad` down and do not run
# it, so that the mode can't be read while they trace (torch/fx/experimental/proxy_tensor.py,
# `PreDispatchTorchFunctionMode`). Asking would need a trace.
GRAPHS_DEFER_GRAD = torch.__version__ < "2.9"


def grad_is_deferred() -> bool:
    """Tell whether a switch of grad mode may be written down and not run: see above.

    What writes it down is a mode of `__torch_function__`, as few others are.
    """
    return GRAPHS_DEFER_GRAD and torch._C._len_torch_function_stack() > 0  # noqa: SLF001


# What each backward() and autograd.grad() of Python calls, by name in the module torch.autograd:
# there is no public hook for "a backward begins".
RUNS_BACKWARD = "_engine_run_backward"

# What to(), cuda(), double() and the like call on each module; Module has no hook for them.
CONVERTS = "_apply"

# The number that the next operation recorded in this thread gets, and that of a node: what tells
# the operations of a forward from those that made its inputs. Only the profiler's docs speak of it.
next_sequence_number: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]  # noqa: SLF001


def sequence_number(node: Any) -> int:
    """Return the number of an operation; that of a leaf is higher than all."""
    number: int = node._sequence_nr()  # noqa: SLF001 (see above)
    return number


F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "CONVERTS",
    "DYNAMO_FOLLOWS_CONTEXTMANAGER",
    "DYNAMO_FOLLOWS_INFERENCE",
    "DYNAMO_STEPS_GENERATORS",
    "GRAPHS_DEFER_GRAD",
    "INFERENCE_TOKEN",
    "RUNS_BACKWARD",
    "TORCH_GUARDS",
    "CompileContext",
    "InferenceToken",
    "allocations",
    "can_record_allocations",
    "default_store",
    "enter_inference",
    "exit_inference",
    "exports",
    "grad_is_deferred",
    "is_any_autocast_enabled",
    "never_compiled",
    "next_sequence_number",
    "not_compiled",
    "sequence_number",
    "set_grad",
    "switch_inference",
    "switch_inference_back",
]


class InferenceToken(Protocol):
    """What holds a switch of inference mode; its exit brings both flags back, in any thread."""

    def __exit__(self, *exc: object) -> None: ...


def _enter_in_two_calls(mode: bool) -> InferenceToken:
    token = INFERENCE_TOKEN(mode)
    token.__enter__()  # type: ignore[no-untyped-call]
    return token


def _construction_enters() -> bool:
    before = torch.is_inference_mode_enabled()
    token = INFERENCE_TOKEN(not before)
    entered = torch.is_inference_mode_enabled() is not before
    token.__exit__(None, None, None)
    return entered


# In 2.6 to 2.14 constructing the C object enters the mode and its `__enter__` does nothing, so
# calling it (80 of 420 ns) is left out where that holds.
enter_inference = INFERENCE_TOKEN if _construction_enters() else _enter_in_two_calls

# The function behind the tokens' `__exit__`, called with the token: binding it costs 30 ns.
_exit = INFERENCE_TOKEN.__exit__
exit_inference: Callable[..., None] = getattr(_exit, "__func__", _exit)


def default_store() -> Any:
    """Return the store of the default process group.

    torch has no public name for the one that `init_process_group` makes.
    """
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()  # noqa: SLF001


# torch.profiler has each allocation, too, but its Kineto writes to stderr as it starts and stops
# (2.13), and gives their order by way of a file.
_PROFILER = ("ProfilerConfig", "ProfilerState", "_enable_profiler_legacy", "_profiler_enabled")


def can_record_allocations() -> bool:
    """Tell whether `allocations` can run: torch has what it takes, and no profiler is active."""
    profiler: Any = torch.autograd
    return all(hasattr(profiler, name) for name in _PROFILER) and not profiler._profiler_enabled()  # noqa: SLF001


def allocations(call: Callable[[], object]) -> list[int]:
    """Run it; return the bytes that it allocated on the CPU and, negative, freed, in order."""
    profiler: Any = torch.autograd
    native: Any = torch._C  # noqa: SLF001 (see above)
    options = native._profiler._ExperimentalConfig()  # noqa: SLF001 (the config asks for one)
    config = profiler.ProfilerConfig(
        profiler.ProfilerState.CPU, False, True, False, False, False, options
    )
    profiler._enable_profiler_legacy(config)  # noqa: SLF001 (see above)
    try:
        call()
    finally:
        threads = profiler._disable_profiler_legacy()  # noqa: SLF001 (see above)
    events = (event for events in threads for event in events)
    return [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]


def exports(frame: FrameType | None) -> bool:
    """Tell whether it is strict torch.export that calls a model from this frame.

    It runs the compiled model once there, and drops what comes of that (`export` in
    torch/_dynamo/eval_frame.py; no more in 2.13). Nothing but the code that calls tells.
    """
    while frame is not None and frame.f_globals.get("__name__") == "torch._dynamo.eval_frame":
        if frame.f_code.co_name == "inner":
            return True
        frame = frame.f_back
    return False


def not_compiled(reason: str) -> Callable[[F], F]:
    """Decorate a function that Dynamo does not follow: a call breaks the graph, for this reason.

    `torch.compiler.disable` does the same, but imports Dynamo, which takes seconds, and knows no
    reason before 2.7. These are the marks that Dynamo looks for in 2.6 to 2.14.
    """

    def decorator(fn: F) -> F:
        marked: Any = fn
        marked._torchdynamo_disable = True  # noqa: SLF001 (see above)
        marked._torchdynamo_disable_msg = reason  # noqa: SLF001 (see above)
        return fn

    return decorator


def never_compiled(namespace: Mapping[str, Any]) -> None:
    """Have Dynamo leave alone the functions and methods of a module, given by its ``globals()``.

    They run as they are also where a function that could not be compiled calls them. Otherwise
    Dynamo would compile those that are passed a module or a tensor, each for itself. That does not
    keep it from following a call of them in a function that it compiles.
    """
    name = namespace["__name__"]
    for value in list(namespace.values()):
        if getattr(value, "__module__", None) == name:
            for function in (value, *(vars(value).values() if isinstance(value, type) else ())):
                for code in _codes(getattr(function, "__code__", None)):
                    _leave_alone(code)


def _codes(code: object) -> Iterator[CodeType]:
    """Yield code and all that is defined in it: comprehensions, functions in functions."""
    if isinstance(code, CodeType):
        yield code
        for constant in code.co_consts:
            yield from _codes(constant)


def _leave_alone(code: CodeType) -> None:
    mark: Any = eval_frame
    if hasattr(mark, "skip_code"):  # torch 2.6
        mark.skip_code(code)
    else:
        skip, default = mark._FrameAction.SKIP, mark._FrameAction.DEFAULT  # noqa: SLF001 (see above)
        mark.set_code_exec_strategy(code, mark._FrameExecStrategy(skip, default))  # noqa: SLF001
