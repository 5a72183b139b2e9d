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
            "test_compile.py::test_each_form[generator_raising-inference_mode()]",
            "test_compile.py::test_each_guard[raising-inference_mode(False)]",
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
        tests=("test_carry.py::test_under_compile[*-no_grad]",),
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
