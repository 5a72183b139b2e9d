"""Faults of torch itself that make a test of gradguard fail, each with a program of torch alone.

`test_torch_faults.py` runs each program where torch is said to have the fault: it must fail. There
the tests named beside it are expected to fail, strictly (`conftest.py`), so that none is named for
longer than it must be, and the matrix counts them.
"""

import platform
import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fault:
    """What torch gets wrong before a version, and which tests cannot pass for it."""

    name: str
    before: str  # the version of torch that has it right
    program: str  # torch alone: it raises where torch has the fault
    tests: tuple[str, ...]  # endings of test ids; * stands for anything
    since: str = "0"
    python: str = "0"  # from which Python on

    def here(self) -> bool:
        """Whether this torch, on this Python, is said to have it."""
        of_torch = self.since <= torch.__version__ < self.before
        return of_torch and numbers(platform.python_version()) >= numbers(self.python)

    def spoils(self, nodeid: str) -> bool:
        """Whether a test cannot pass where torch has the fault."""
        return any(
            re.search(r"(^|/)" + re.escape(test).replace(r"\*", ".*") + "$", nodeid)
            for test in self.tests
        )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


FAULTS = (
    Fault(
        "Dynamo cannot leave a block of inference mode by an error",
        before="2.9",
        program="""
def fn(x):
    try:
        with torch.inference_mode():
            raise ValueError
    except ValueError:
        return x * 2
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=(
            "test_compile.py::test_each_form[raising-inference_mode()]",
            "test_compile.py::test_each_form[thrown-inference_mode()]",
            "test_compile.py::test_each_guard[raising-inference_mode(False)]",
        ),
    ),
    Fault(
        "Dynamo cannot leave a generator under inference mode by an error",
        since="2.7",
        before="2.9",
        program="""
@torch.inference_mode()
def steps(x):
    yield x * 2
    raise ValueError
def fn(x):
    try:
        for y in steps(x):
            pass
    except ValueError:
        return y
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=("test_compile.py::test_each_form[generator_raising-inference_mode()]",),
    ),
    Fault(
        "Dynamo cannot leave a block by an error",
        before="2.7",
        program="""
def fn(x):
    try:
        with torch.no_grad():
            raise ValueError
    except ValueError:
        return x * 2
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=(
            "test_compile.py::test_each_form[raising-no_grad]",
            "test_compile.py::test_each_guard[raising-enable_grad]",
            "test_compile.py::test_each_guard[raising-set_grad_enabled(*)]",
        ),
    ),
    Fault(
        "Dynamo cannot step a decorated generator, and drops what one gives before an error",
        before="2.7",
        program="""
@torch.no_grad()
def steps(x):
    yield x * 2
    yield x * 3
def fn(x):
    running = steps(x)
    return next(running), next(running)
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=(
            "test_compile.py::test_each_form[stepped-*]",
            "test_compile.py::test_each_form[sent-*]",
            "test_compile.py::test_each_form[thrown-no_grad]",
            "test_compile.py::test_each_form[closed-*]",
            "test_compile.py::test_each_form[generator_raising-*]",
            "test_compile.py::test_each_decorator[stepped-*]",
            "test_compile.py::test_what_dynamo_cannot_follow_of_torch[suspended_in_a_guard-*]",
            "test_compile.py::test_what_dynamo_cannot_follow_of_torch[stepped-*]",
            "test_compile.py::test_rebound_names[no_grad-stepped]",
            "test_transforms.py::test_export_strict[stepped-*]",
        ),
    ),
    Fault(
        "Dynamo has no value for what `with inference_mode() as` gives",
        before="2.9",
        program="""
def fn(x):
    with torch.inference_mode() as given:
        return x * 2, given is None
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=("test_compile.py::test_each_form[as_nothing-inference_mode()]",),
    ),
    Fault(
        "AOT Autograd takes back the grad mode that a compiled function leaves",
        before="2.12",
        program="""
def fn(x):
    torch.set_grad_enabled(False)
    return x * 2
torch.compile(fn, backend="aot_eager", fullgraph=True)(torch.ones(1, requires_grad=True))
assert not torch.is_grad_enabled()
""",
        tests=("test_trace_compile.py::test_other_ways_to_switch_compile_alike[leaving]",),
    ),
    Fault(
        "fully_shard needs a device with streams",
        before="2.7",
        program="""
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
model = nn.Linear(1, 1)
mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
fully_shard(model, mesh=mesh)(torch.ones(1))
""",
        tests=("test_watch_ranks.py::test_sharded_parameters_are_watched_as_others",),
    ),
    Fault(
        "Dynamo cannot follow a decorated generator through a comprehension",
        before="2.7",
        program="""
@torch.no_grad()
def steps(x):
    yield x * 2
torch.compile(lambda x: [y for y in steps(x)], backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=("test_compile.py::test_what_dynamo_cannot_follow_of_torch[exhausted-*]",),
    ),
    Fault(
        "Dynamo does not let a program catch the StopIteration of a decorated generator",
        before="2.7",
        program="""
@torch.no_grad()
def steps(x):
    got = yield x * 2
def fn(x):
    running = steps(x)
    next(running)
    try:
        running.send(x)
    except StopIteration:
        return x * 4
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=("test_compile.py::test_what_dynamo_cannot_follow_of_torch[stopped-*]",),
    ),
    Fault(
        "Dynamo does not follow a contextlib.contextmanager",
        before="2.7",
        program="""
import contextlib
@contextlib.contextmanager
def recorded():
    with torch.enable_grad():
        yield
def fn(x):
    with recorded():
        return x * 2
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=(
            "test_carry.py::test_under_compile[*-no_grad]",
            "test_compile.py::test_each_form[in_a_contextmanager-*]",
            # What a block of a decorator's own takes where Dynamo does not follow inference mode in
            # a class: torch's block is split with the body.
            "test_compile.py::test_a_graph_break_in_the_body[broken_method-inference_mode()]",
        ),
    ),
    Fault(
        "Dynamo knows inference_mode by the name `torch.inference_mode` alone",
        before="2.13",
        program="""
own = torch.inference_mode
torch.inference_mode = lambda mode=True: own(mode)
def fn(x):
    with own():
        return x * 2
torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(1))
""",
        tests=("test_compile.py::test_rebound_names[inference_mode()-*]",),
    ),
)
