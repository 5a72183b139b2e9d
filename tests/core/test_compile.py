"""Under `torch.compile(fullgraph=True)`: what torch's guards do, as often compiled as with them."""

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import TorchRuntimeError, Unsupported
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import gradguard
from gradguard._core import body_wrappers as _body_wrappers
from gradguard._core import guards as _guards
from gradguard._core import wrappers as _wrappers

GUARDS: dict[str, Callable[[Any], Any]] = {
    "no_grad": lambda ns: ns.no_grad(),
    "enable_grad": lambda ns: ns.enable_grad(),
    "set_grad_enabled(False)": lambda ns: ns.set_grad_enabled(False),
    "set_grad_enabled(True)": lambda ns: ns.set_grad_enabled(True),
    "inference_mode()": lambda ns: ns.inference_mode(),
    "inference_mode(False)": lambda ns: ns.inference_mode(False),
}
TWO = ("no_grad", "inference_mode()")
SETTERS = ("set_grad_enabled(False)", "set_grad_enabled(True)")


def _deep() -> ExitStack:
    stack = ExitStack()
    for _ in range(4):
        stack.enter_context(gradguard.no_grad())
        stack.enter_context(gradguard.enable_grad())
    return stack


OUTSIDES: dict[str, Callable[[], Any]] = {
    "nothing": nullcontext,
    "torch.no_grad": torch.no_grad,
    "gradguard.no_grad": gradguard.no_grad,
    "gradguard.set_grad_enabled": lambda: gradguard.set_grad_enabled(False),
    "torch.inference_mode": torch.inference_mode,
    "gradguard.inference_mode": gradguard.inference_mode,
    "deep": _deep,
}
MODES_OUTSIDE = 3  # grad on, grad off, inference mode: each is compiled once
# How often Dynamo compiles a function before it gives up, as torch 2.7 and 2.6 call it.
LIMIT = "recompile_limit" if hasattr(dynamo_config, "recompile_limit") else "cache_size_limit"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    assert gradguard.grad_state() == (True, False)
    assert gradguard.guards() == ()


def _shown(value: Any) -> Any:
    """What two results must share to be called the same."""
    if isinstance(value, torch.Tensor):
        recorded = type(value.grad_fn).__name__
        return value.tolist(), value.requires_grad, value.is_inference(), recorded
    if isinstance(value, (list, tuple)):
        return tuple(_shown(item) for item in value)
    return value


def _under(fn: Callable[..., Any], outsides: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What `fn` gives under each of `outsides`, and the mode that it leaves there."""
    seen = {}
    for name, outside in outsides.items():
        x = torch.ones(2, requires_grad=True)
        with outside():
            before = gradguard.grad_state()
            seen[name] = _shown(fn(x))
            seen[f"{name}, left"] = gradguard.grad_state() == before or gradguard.grad_state()
    return seen


def _compiled(
    fn: Callable[..., Any], outsides: dict[str, Callable[[], Any]] = OUTSIDES, **options: Any
) -> tuple[dict[str, Any], int]:
    """What `fn` gives when compiled, and how often it was compiled."""
    torch._dynamo.reset()
    counter = CompileCounter()
    options = {"fullgraph": True, **options}
    return _under(torch.compile(fn, backend=counter, **options), outsides), counter.frame_count


# Programs: given the namespace (torch or gradguard) and a guard of it, the function to compile.


def block(ns, guard):
    def fn(x):
        with guard(ns):
            inner = x * 3, torch.is_grad_enabled()
        return x * 2, inner, torch.is_grad_enabled()

    return fn


def nested(ns, guard):
    def fn(x):
        with ns.no_grad():
            with guard(ns):
                a = x * 2
            with ns.enable_grad(), guard(ns):
                b = x * 3
            c = x * 4
        return a, b, c, x * 5

    return fn


def same_guard_twice(ns, guard):
    def fn(x):
        again = guard(ns)
        with again:
            a = x * 2
        with again:
            b = x * 3
        return a, b, x * 4

    return fn


def as_nothing(ns, guard):
    def fn(x):
        with guard(ns) as entered:
            return x * 2, entered is None

    return fn


def raising(ns, guard):
    def fn(x):
        try:
            with guard(ns):
                y = x * 2
                raise ValueError  # noqa: TRY301 (the block is what is left)
        except ValueError:
            return y, x * 3, torch.is_grad_enabled()

    return fn


def handed_on(ns, guard):
    def under(x, given):
        with given:
            return x * 2

    def fn(x):
        return under(x, guard(ns)), x * 3

    return fn


def in_a_contextmanager(ns, guard):
    @contextlib.contextmanager
    def managed():
        with guard(ns):
            yield

    def fn(x):
        with managed():
            y = x * 2
        return y, x * 3

    return fn


def decorated(ns, guard):
    @guard(ns)
    def inner(x):
        return x * 3, torch.is_grad_enabled()

    return inner


def calling_decorated(ns, guard):
    @guard(ns)
    def inner(x, *, by=1, **more):
        return x * by * more.get("more", 1), torch.is_grad_enabled()

    def fn(x):
        return inner(x), inner(x, by=2, more=3), x * 2, torch.is_grad_enabled()

    return fn


def recursive(ns, guard):
    @guard(ns)
    def inner(x, n):
        return inner(x * 2, n - 1) if n else x

    def fn(x):
        return inner(x, 3), x * 2

    return fn


def decorated_partial(ns, guard):
    inner = guard(ns)(functools.partial(torch.mul, torch.tensor(2.0)))

    def fn(x):
        return inner(x), x * 3

    return fn


class _Doubles:
    def __call__(self, x):
        return x * 2


def decorated_object(ns, guard):
    inner = guard(ns)(_Doubles())

    def fn(x):
        return inner(x), x * 3

    return fn


class _Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))


def decorated_method(ns, guard):
    class Net(_Net):
        @guard(ns)
        def predict(self, x):
            return self.weight * x, torch.is_grad_enabled()

        def forward(self, x):
            return self.predict(x), self.weight * x

    return Net()


def decorated_forward(ns, guard):
    class Net(_Net):
        @guard(ns)
        def forward(self, x):
            return self.weight * x

    return Net()


def decorated_class_attributes(ns, guard):
    class Net(_Net):
        @staticmethod
        @guard(ns)
        def static(x):
            return x * 2

        @classmethod
        @guard(ns)
        def of_class(cls, x):
            return x * 3

        @property
        @guard(ns)
        def double(self):
            return self.weight * 2

        def forward(self, x):
            return self.static(x), self.of_class(x), self.double, x * 4

    return Net()


def returning_a_generator(ns, guard):
    def steps(x):
        yield x * 2

    @guard(ns)
    def inner(x):
        return steps(x)

    def fn(x):
        return list(inner(x)), x * 3

    return fn


def decorated_inside(ns, guard):
    def fn(x):
        @guard(ns)
        def inner(x):
            return x * 3, torch.is_grad_enabled()

        return inner(x), x * 2, torch.is_grad_enabled()

    return fn


def recursive_inside(ns, guard):
    def fn(x):
        @guard(ns)
        def inner(x, n):
            return inner(x * 2, n - 1) if n else x

        return inner(x, 2), x * 3, torch.is_grad_enabled()

    return fn


def stepped(ns, guard):
    @guard(ns)
    def steps(x):
        yield x * 2, torch.is_grad_enabled()
        yield x * 3, torch.is_grad_enabled()

    def fn(x):
        running = steps(x)
        first = next(running)
        between = x * 4, torch.is_grad_enabled()
        return first, between, next(running), x * 5

    return fn


def sent(ns, guard):
    @guard(ns)
    def steps(x):
        got = yield x * 2
        got = yield got * 3
        yield got * 4

    def fn(x):
        running = steps(x)
        return next(running), running.send(x), running.send(x * 5), x * 6

    return fn


def thrown(ns, guard):
    @guard(ns)
    def steps(x):
        try:
            yield x * 2
        except ValueError:
            yield x * 3, torch.is_grad_enabled()

    def fn(x):
        running = steps(x)
        return next(running), running.throw(ValueError("thrown")), x * 4

    return fn


def closed(ns, guard):
    @guard(ns)
    def steps(x, seen):
        try:
            yield x * 2
        finally:
            seen.append(x * 3)
            seen.append(torch.is_grad_enabled())

    def fn(x):
        seen = []
        running = steps(x, seen)
        first = next(running)
        running.close()
        return first, seen, x * 4

    return fn


def generator_raising(ns, guard):
    @guard(ns)
    def steps(x):
        yield x * 2
        raise ValueError

    def fn(x):
        seen = []
        try:
            for y in steps(x):
                seen.append(y)  # noqa: PERF402 (what came before the error is kept)
        except ValueError:
            return seen, x * 3, torch.is_grad_enabled()

    return fn


def statement(ns, guard):
    def fn(x):
        y = x * 2
        guard(ns)
        return y, x * 3, torch.is_grad_enabled()

    return fn


def statement_in_a_block(ns, guard):
    def fn(x):
        with ns.enable_grad():
            guard(ns)
            y = x * 2
        return y, x * 3, torch.is_grad_enabled()

    return fn


BLOCKS = (block, nested, same_guard_twice, as_nothing, raising, handed_on, in_a_contextmanager)
FUNCTIONS = (
    *(decorated, calling_decorated, recursive, decorated_partial, decorated_object),
    *(decorated_method, decorated_forward, decorated_class_attributes, returning_a_generator),
)
GENERATORS = (stepped, sent, thrown, closed, generator_raising)


@pytest.mark.parametrize("guard", TWO)
@pytest.mark.parametrize("program", [*BLOCKS, *FUNCTIONS, *GENERATORS, decorated_inside])
def test_each_form(program, guard):
    """Each form of a guard gives, whatever is open outside, what torch's gives, compiled as often."""
    expected = _compiled(program(torch, GUARDS[guard]))
    assert _compiled(program(gradguard, GUARDS[guard])) == expected
    assert expected[1] == MODES_OUTSIDE


@pytest.mark.parametrize("guard", [name for name in GUARDS if name not in TWO])
@pytest.mark.parametrize("program", [block, nested, raising, decorated_inside])
def test_each_guard(program, guard):
    """The other guards, too, give what torch's give, compiled as often."""
    expected = _compiled(program(torch, GUARDS[guard]))
    assert _compiled(program(gradguard, GUARDS[guard])) == expected


@pytest.mark.parametrize("guard", ["enable_grad", "inference_mode(False)"])
@pytest.mark.parametrize("program", [calling_decorated, decorated_method, stepped])
def test_each_decorator(program, guard):
    """So do the other decorators that torch can compile."""
    expected = _compiled(program(torch, GUARDS[guard]))
    assert _compiled(program(gradguard, GUARDS[guard])) == expected


@pytest.mark.parametrize("guard", SETTERS)
@pytest.mark.parametrize("program", [statement, statement_in_a_block])
def test_a_statement(program, guard):
    """`set_grad_enabled` as a statement lasts, when compiled, as long as torch's does."""
    outsides = {"on": torch.enable_grad, "off": gradguard.no_grad, "deep": _deep}
    expected = _compiled(program(torch, GUARDS[guard]), outsides)
    assert _compiled(program(gradguard, GUARDS[guard]), outsides) == expected


def bare(ns, _):
    first, second, third = (
        made(lambda x: x * 2) for made in (ns.no_grad, ns.enable_grad, ns.inference_mode)
    )

    def fn(x):
        return first(x), second(x), third(x), x * 3

    return fn


def bare_inside(ns, _):
    def fn(x):
        first = ns.no_grad(lambda x: x * 2)
        second = ns.enable_grad(lambda x: x * 3)
        return first(x), second(x), x * 4

    return fn


@pytest.mark.parametrize("program", [bare, bare_inside])
def test_without_parentheses(program):
    """A guard's name alone decorates, outside the compiled function and inside."""
    assert _compiled(program(gradguard, None)) == _compiled(program(torch, None))


def exhausted(ns, guard):
    @guard(ns)
    def steps(x):
        for by in range(3):
            yield x * by, torch.is_grad_enabled()

    def fn(x):
        seen = [(y, torch.is_grad_enabled()) for y in steps(x)]
        return seen, list(steps(x)), x * 4

    return fn


def stopped(ns, guard):
    @guard(ns)
    def steps(x):
        got = yield x * 2
        yield got * 3

    def fn(x):
        running = steps(x)
        seen = [next(running), running.send(x)]
        try:
            next(running)
        except StopIteration:
            return seen, x * 4, torch.is_grad_enabled()

    return fn


def suspended_in_a_guard(ns, guard):
    @guard(ns)
    def steps(x):
        with ns.enable_grad():
            yield x * 2
            yield x * 3

    def fn(x):
        return list(steps(x)), x * 4

    return fn


BEYOND_TORCH = [
    *((program, guard) for guard in TWO for program in (exhausted, stopped, suspended_in_a_guard)),
    *((program, guard) for guard in SETTERS for program in (decorated, decorated_method, stepped)),
]


@pytest.mark.parametrize(("program", "guard"), BEYOND_TORCH)
def test_what_dynamo_cannot_follow_of_torch(program, guard):
    """Generators that end, and set_grad_enabled's decorator, give what torch's give uncompiled.

    Whether Dynamo follows torch's own (the generators, from 2.14 on) or not.
    """
    expected = _under(program(torch, GUARDS[guard]), OUTSIDES)
    assert _compiled(program(gradguard, GUARDS[guard])) == (expected, MODES_OUTSIDE)


def stored(ns, guard):
    kept = guard(ns)
    torch.set_grad_enabled(True)

    def fn(x):
        with kept:
            y = x * 2
        return y, x * 3

    return fn


def awaited(ns, guard):
    @guard(ns)
    async def inner(x):
        return x * 2

    def fn(x):
        running = inner(x)
        try:
            running.send(None)
        except StopIteration as stop:
            return stop.value

    return fn


@pytest.mark.parametrize("program", [stored, awaited])
def test_what_dynamo_can_follow_of_neither(program):
    """A guard made outside, and a coroutine, are as impossible in a full graph as with torch's."""
    for ns in (torch, gradguard):
        with pytest.raises((Unsupported, TorchRuntimeError)):  # the latter in 2.6: of a coroutine
            _compiled(program(ns, GUARDS["no_grad"]))


def test_a_stored_guard_runs_without_fullgraph():
    """Where Dynamo cannot follow it, a stored guard has its effect all the same, as torch's."""
    outsides = {"nothing": nullcontext, "off": gradguard.no_grad}
    expected = _compiled(stored(torch, GUARDS["no_grad"]), outsides, fullgraph=False)
    assert _compiled(stored(gradguard, GUARDS["no_grad"]), outsides, fullgraph=False) == expected


def broken_block(ns, guard):
    def fn(x):
        with guard(ns):
            y = x * 2
            torch._dynamo.graph_break()
            z = x * 3, torch.is_grad_enabled()
        return y, z, x * 4

    return fn


def broken_method(ns, guard):
    class Net(_Net):
        @guard(ns)
        def predict(self, x):
            y = self.weight * x
            torch._dynamo.graph_break()
            return y, x * 3, torch.is_grad_enabled()

        def forward(self, x):
            return self.predict(x), x * 4

    return Net()


@pytest.mark.parametrize("guard", TWO)
@pytest.mark.parametrize("program", [broken_block, broken_method])
def test_a_graph_break_in_the_body(program, guard):
    """A body that breaks the graph is compiled in as many parts as under torch's guard."""
    expected = _compiled(program(torch, GUARDS[guard]), fullgraph=False)
    assert expected[1] > MODES_OUTSIDE
    assert _compiled(program(gradguard, GUARDS[guard]), fullgraph=False) == expected


def in_func_grad(ns, guard):
    def loss(x):
        with guard(ns):
            y = x * 2
        return (y * x).sum()

    def fn(x):
        return torch.func.grad(loss)(x), x * 3

    return fn


def in_func_vmap(ns, guard):
    double = guard(ns)(lambda x: x * 2)

    def fn(x):
        return torch.func.vmap(lambda x: double(x) * x)(x), x * 3

    return fn


def in_checkpoint(ns, guard):
    double = guard(ns)(lambda x: x * 2)

    def inner(x):
        with guard(ns):
            y = x * 2
        return double(x) * y * x

    def fn(x):
        return checkpoint(inner, x, use_reentrant=False), x * 3

    return fn


def in_cond(ns, guard):
    def doubled(x):
        with guard(ns):
            return x * 2

    def fn(x):
        return torch.cond(x.sum() > 0, doubled, lambda x: x * 3, (x,))

    return fn


@pytest.mark.parametrize("guard", ["no_grad", "enable_grad"])
@pytest.mark.parametrize("program", [in_func_grad, in_func_vmap, in_checkpoint, in_cond])
def test_inside_another_transform(program, guard):
    """torch.func, checkpoints and torch.cond inside the compiled function see the same guards."""
    outsides = {"nothing": nullcontext, "off": gradguard.no_grad, "deep": _deep}
    expected = _compiled(program(torch, GUARDS[guard]), outsides)
    assert _compiled(program(gradguard, GUARDS[guard]), outsides) == expected


SAME_MODE: dict[str, Callable[[], Any]] = {
    "nothing": nullcontext,
    "torch.enable_grad": torch.enable_grad,
    "gradguard.enable_grad": gradguard.enable_grad,
    "gradguard.set_grad_enabled": lambda: gradguard.set_grad_enabled(True),
    "gradguard.inference_mode(False)": lambda: gradguard.inference_mode(False),
    "deep": _deep,
}


@pytest.mark.parametrize("guard", GUARDS)
def test_no_recompile(guard):
    """Guards outside that do not change the mode never make Dynamo compile again."""
    with dynamo_config.patch(error_on_recompile=True):
        assert _compiled(block(gradguard, GUARDS[guard]), SAME_MODE)[1] == 1
        assert _compiled(calling_decorated(gradguard, GUARDS[guard]), SAME_MODE)[1] == 1


def step(ns):
    @ns.no_grad()
    def off(x):
        return x * 2

    def fn(x):
        with ns.inference_mode():
            a = x * 3
        with ns.enable_grad():
            b = x * 4
        return off(x), a, b, x * 5

    return fn


NESTS = st.lists(st.tuples(st.sampled_from([torch, gradguard]), st.sampled_from(list(GUARDS))))


@dynamo_config.patch(**{LIMIT: 64})  # the two share their code, and so the limit
def test_whatever_is_open_outside():
    """Any nest of guards outside, of torch and gradguard, changes neither result nor count."""
    counters = CompileCounter(), CompileCounter()
    ours, theirs = (
        torch.compile(step(ns), backend=counter, fullgraph=True)
        for ns, counter in zip((gradguard, torch), counters, strict=True)
    )

    def under(nest, fn):
        x = torch.ones(2, requires_grad=True)
        with ExitStack() as stack:
            for ns, guard in nest:
                stack.enter_context(GUARDS[guard](ns))
            return _shown(fn(x)), gradguard.grad_state()

    @settings(max_examples=60, deadline=None)
    @given(NESTS)
    def run(nest):
        assert under(nest, ours) == under(nest, theirs)

    run()
    assert counters[0].frame_count == counters[1].frame_count > 1


class _Trained(torch.nn.Module):
    def __init__(self, ns):
        super().__init__()
        self.ns = ns
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.scale = ns.no_grad()(self.scale)
        self.offset = ns.inference_mode()(self.offset)

    def scale(self, x):
        return self.weight.sum() * x

    def offset(self, x):
        return x.mean()

    def forward(self, x):
        with self.ns.no_grad():
            target = self.weight * x
            with self.ns.enable_grad():
                recorded = self.weight * 3
        return recorded * self.scale(x) + self.weight * target, self.offset(x)


def _trained(ns: Any, backend: str, **options: Any) -> Any:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    net = _Trained(ns)
    compiled = torch.compile(net, backend=counter, fullgraph=True, **options)
    result, offset = compiled(torch.tensor([3.0, 4.0]))
    result.sum().backward()
    with gradguard.no_grad():
        without, _ = compiled(torch.tensor([3.0, 4.0]))
    return _shown((result, offset, without, net.weight.grad)), counter.frame_count


def _no_compiler() -> bool:
    return not any(shutil.which(name) for name in ("g++", "clang++", "c++"))


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(_no_compiler(), reason="needs a C++ compiler")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gradients_of_each_backend(backend):
    """A compiled step's loss and gradients are those of the same step under torch's guards."""
    expected = _trained(torch, backend)
    assert _trained(gradguard, backend) == expected
    assert expected[1] == 2


FORMS = {
    "attribute": ("import gradguard", "with gradguard.no_grad(): y = x * 3"),
    "import": ("", "from gradguard import inference_mode; y = inference_mode(lambda x: x * 3)(x)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_first_use_inside_the_compiled_function(form, tmp_path):
    """A guard that is looked up for the first time while compiling is followed all the same."""
    first, use = FORMS[form]
    path = tmp_path / "first.py"
    path.write_text(f"""\
import sys
import torch
from torch._dynamo.testing import CompileCounter
{first}

def fn(x):
    {use}
    return y, x * 2

assert "gradguard._core.guards" not in sys.modules
counter = CompileCounter()
compiled = torch.compile(fn, backend=counter, fullgraph=True)
for _ in range(3):
    y, z = compiled(torch.ones(2, requires_grad=True))
    assert not y.requires_grad and z.requires_grad
assert counter.frame_count == 1
""")
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


NAMES = ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode")


@pytest.mark.parametrize("program", [block, nested, decorated, decorated_inside, stepped])
@pytest.mark.parametrize("guard", TWO)
def test_rebound_names(monkeypatch, program, guard):
    """A project that rebinds torch's names to gradguard's compiles what it compiled before."""
    expected = _compiled(program(torch, GUARDS[guard]))
    for name in NAMES:
        monkeypatch.setattr(torch, name, getattr(gradguard, name))
    assert _compiled(program(torch, GUARDS[guard])) == expected


@pytest.mark.parametrize("guard", SETTERS)
@pytest.mark.parametrize("program", [block, statement_in_a_block, decorated_inside])
def test_rebound_set_grad_enabled(monkeypatch, program, guard):
    """So does one that rebinds `set_grad_enabled`, which acts when it is made."""
    expected = _compiled(program(torch, GUARDS[guard]))
    for name in NAMES:
        monkeypatch.setattr(torch, name, getattr(gradguard, name))
    assert _compiled(program(torch, GUARDS[guard])) == expected


UNCOMPILED = [
    *(block, nested, statement_in_a_block, decorated_inside, recursive_inside),
    *(decorated, calling_decorated, stepped, sent, thrown, closed, stopped),
]


@pytest.mark.parametrize("rebound", [False, True])
@pytest.mark.parametrize("guard", GUARDS)
def test_what_dynamo_reads_holds_uncompiled(monkeypatch, rebound, guard):
    """The code meant for Dynamo, run by Python, does what torch's guards do."""
    programs = [(made(torch, GUARDS[guard]), made(gradguard, GUARDS[guard])) for made in UNCOMPILED]
    expected = [_under(theirs, OUTSIDES) for theirs, _ in programs]
    if rebound:
        for name in NAMES:
            monkeypatch.setattr(torch, name, getattr(gradguard, name))
    for module in (_guards, _wrappers):
        monkeypatch.setattr(module, "is_dynamo_compiling", lambda: True)
    monkeypatch.setattr(_body_wrappers, "_gg_is_dynamo_compiling", lambda: True)
    assert [_under(ours, OUTSIDES) for _, ours in programs] == expected
