"""Under export, make_fx, TorchScript, torch.func, checkpoints, forward AD: as torch's guards."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import gradguard

GUARDS: dict[str, Callable[[Any], Any]] = {
    "no_grad": lambda ns: ns.no_grad(),
    "enable_grad": lambda ns: ns.enable_grad(),
    "set_grad_enabled(False)": lambda ns: ns.set_grad_enabled(False),
    "set_grad_enabled(True)": lambda ns: ns.set_grad_enabled(True),
    "inference_mode()": lambda ns: ns.inference_mode(),
    "inference_mode(False)": lambda ns: ns.inference_mode(False),
}
OUTSIDES: dict[str, Callable[[], Any]] = {
    "nothing": nullcontext,
    "torch.no_grad": torch.no_grad,
    "gradguard.no_grad": gradguard.no_grad,
    "gradguard.enable_grad": gradguard.enable_grad,
}


@pytest.fixture(autouse=True)
def _mode_is_left() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    assert gradguard.grad_state() == (True, False)
    assert gradguard.guards() == ()


def _x() -> torch.Tensor:
    return torch.tensor([1.0, 2.0], requires_grad=True)


def _shown(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist(), value.requires_grad, value.is_inference()
    if isinstance(value, (list, tuple)):
        return tuple(_shown(item) for item in value)
    return value


# Programs: given the namespace (torch or gradguard) and a guard of it, a function of one tensor
# that returns a tuple of tensors.


def block(ns, guard):
    def fn(x):
        with guard(ns):
            y = x * x
        return y, x * 3

    return fn


def nested(ns, guard):
    def fn(x):
        with ns.no_grad():
            a = x * 2
            with ns.enable_grad(), guard(ns):
                b = x * x
            c = x * 4
        return a, b, c, x * 5

    return fn


def decorated(ns, guard):
    inner = guard(ns)(lambda x: x * x)

    def fn(x):
        return inner(x), x * 3

    return fn


def method(ns, guard):
    class Squares:
        @guard(ns)
        def square(self, x):
            return x * x

    def fn(x):
        return Squares().square(x), x * 3

    return fn


def stepped(ns, guard):
    @guard(ns)
    def steps(x):
        yield x * x
        yield x * 3

    def fn(x):
        running = steps(x)
        first = next(running)
        between = x * 4
        return first, between, next(running), x * 5

    return fn


def recording_inside_inference(ns, guard):
    def fn(x):
        with ns.no_grad():
            with ns.inference_mode():
                with guard(ns):
                    a = x * 2
                b = x * 3
            c = x * 4
        return a, b, c, x * 5

    return fn


SETTERS = ("set_grad_enabled(False)", "set_grad_enabled(True)")
RECORDING = ("enable_grad", "set_grad_enabled(True)", "inference_mode(False)")
PROGRAMS = (block, nested, decorated, method, stepped)


class _Module(torch.nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.fn(x * self.weight)


def _recorded(graph_module: torch.fx.GraphModule, grad: bool = True) -> list[tuple[str, bool]]:
    """Each operation of a graph, and whether the graph has grad on there."""
    found = []
    for node in graph_module.graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            grad = node.args[0]
        elif node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            inner_grad, inner = node.args[:2]
            found += _recorded(getattr(graph_module, inner.target), inner_grad)
        elif node.op == "call_function" and "aten" in str(node.target):
            found.append((str(node), grad))
    return [(name.rstrip("_0123456789"), grad) for name, grad in found]


def _exported(fn: Callable[..., Any], *, strict: bool) -> Any:
    program = torch.export.export(_Module(fn), (_x(),), strict=strict)
    return _recorded(program.graph_module), _shown(program.module()(_x()))


# Without set_grad_enabled over a generator: Dynamo cannot follow torch's decorator.
STRICT = [
    *((program, guard) for program in (block, nested) for guard in GUARDS),
    *((stepped, guard) for guard in GUARDS if guard not in SETTERS),
]


@pytest.mark.parametrize(("program", "guard"), STRICT)
def test_export_strict(program, guard):
    """A strictly exported program is the one that torch's guard gives."""
    expected = _exported(program(torch, GUARDS[guard]), strict=True)
    assert _exported(program(gradguard, GUARDS[guard]), strict=True) == expected


# An inference mode switch is not in such graphs. Where a suspended body comes back into inference
# mode, gradguard's says so by its grad mode, from the second step on; torch's never does.
IN_GRAPHS = [
    (program, guard)
    for program in (*PROGRAMS, recording_inside_inference)
    for guard in GUARDS
    if (program, guard) != (stepped, "inference_mode()")
    and (program is not recording_inside_inference or guard in RECORDING)
]


@pytest.mark.parametrize(("program", "guard"), IN_GRAPHS)
def test_export(program, guard):
    """A program exported otherwise has the same operations, with grad on in the same of them."""
    expected = _exported(program(torch, GUARDS[guard]), strict=False)
    assert _exported(program(gradguard, GUARDS[guard]), strict=False) == expected


def test_export_after_a_suspended_inference_body():
    """What runs while an inference generator is suspended, and afterwards, is exported grad on."""
    recorded, _ = _exported(stepped(gradguard, GUARDS["inference_mode()"]), strict=False)
    _weight, _first, between, _second, after = recorded
    assert between == after == ("mul", True)


def _traced(fn: Callable[..., Any], **options: Any) -> Any:
    graph = make_fx(fn, **options)(_x())
    return _recorded(graph), _shown(graph(_x()))


@pytest.mark.parametrize(("program", "guard"), IN_GRAPHS)
def test_make_fx_before_dispatch(program, guard):
    """make_fx with pre_dispatch writes down the same operations, with grad on in the same."""
    expected = _traced(program(torch, GUARDS[guard]), pre_dispatch=True)
    assert _traced(program(gradguard, GUARDS[guard]), pre_dispatch=True) == expected


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_make_fx(program, mode):
    """make_fx after dispatch traces the same operations and leaves the same mode."""
    for guard in GUARDS.values():
        expected = _traced(program(torch, guard), tracing_mode=mode)
        assert _traced(program(gradguard, guard), tracing_mode=mode) == expected


def _jit_traced(fn: Callable[..., Any]) -> Any:
    traced = torch.jit.trace(fn, (_x(),))
    return str(traced.graph), _shown(traced(_x()))


@pytest.mark.parametrize("outside", OUTSIDES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_jit_trace(program, outside):
    """torch.jit.trace sees the same operations, its results recorded or not as torch's are."""
    for name, guard in GUARDS.items():
        if name == "inference_mode(False)" and "no_grad" in outside:
            continue  # torch's turns grad on there, gradguard's does not
        with OUTSIDES[outside]():
            expected = _jit_traced(program(torch, guard))
            assert _jit_traced(program(gradguard, guard)) == expected


class _Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weight * x


def with_methods(ns):
    class Net(_Net):
        @ns.no_grad()
        def predict(self, x):
            return self.weight * x

        @ns.inference_mode()
        def infer(self, x):
            return self.weight * x

        @ns.set_grad_enabled(False)
        def setter(self, x):
            return self.weight * x

        @ns.no_grad()
        def stream(self, xs):
            for x in xs:
                yield self.weight * x

        @ns.no_grad()
        async def later(self, x):
            return self.weight * x

        @staticmethod
        @ns.no_grad()
        def static(x):
            return x * 2

        @property
        @ns.no_grad()
        def double(self):
            return self.weight * 2

    return Net()


def with_a_called_method(ns):
    class Net(_Net):
        @ns.no_grad()
        def predict(self, x):
            return self.weight * x * 2

        def forward(self, x):
            return self.predict(x)

    return Net()


def with_an_exported_method(ns):
    class Net(_Net):
        @torch.jit.export
        @ns.no_grad()
        def predict(self, x):
            return self.weight * x * 2

    return Net()


def with_an_ignored_method(ns):
    class Net(_Net):
        @torch.jit.ignore
        @ns.no_grad()
        def predict(self, x):
            return self.weight * x * 2

        def forward(self, x):
            return self.predict(x)

    return Net()


def with_forward(ns):
    class Net(_Net):
        @ns.no_grad()
        def forward(self, x):
            return self.weight * x * 2

    return Net()


def with_a_function(ns):
    @ns.no_grad()
    def double(x):
        return x * 2

    class Net(_Net):
        def forward(self, x):
            return double(x)

    return Net()


@pytest.mark.parametrize(
    "make",
    [
        *(with_methods, with_a_called_method, with_an_exported_method),
        *(with_an_ignored_method, with_forward, with_a_function),
    ],
)
def test_jit_script(make):
    """A module with decorated methods is scripted as one decorated with torch's guards is."""
    results = []
    for ns in (torch, gradguard):
        scripted = torch.jit.script(make(ns))
        results.append((sorted(scripted._c._method_names()), _shown(scripted(_x()))))
    assert results[1] == results[0]


def _sum(fn: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    return lambda x: torch.stack([part.sum() for part in fn(x)]).sum()


FUNC: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "grad": lambda fn: func.grad(_sum(fn)),
    "vjp": lambda fn: lambda x: func.vjp(fn, x)[1](fn(torch.ones_like(x))),
    "jvp": lambda fn: lambda x: func.jvp(fn, (x,), (torch.ones_like(x),)),
    "jacrev": func.jacrev,
    "jacfwd": func.jacfwd,
    "hessian": lambda fn: func.hessian(_sum(fn)),
    "vmap": lambda fn: lambda x: func.vmap(fn)(x.expand(2, 2)),
    "vmap of grad": lambda fn: lambda x: func.vmap(func.grad(_sum(fn)))(x.expand(2, 2)),
}


@pytest.mark.parametrize("outside", OUTSIDES)
@pytest.mark.parametrize("transform", FUNC)
def test_func(transform, outside):
    """torch.func gives the derivatives that it gives with torch's guards."""
    for program in (block, decorated, stepped):
        for guard in GUARDS.values():
            ours, theirs = (FUNC[transform](program(ns, guard)) for ns in (gradguard, torch))
            with OUTSIDES[outside]():
                x = torch.tensor([1.0, 2.0])
                assert _shown(ours(x)) == _shown(theirs(x))


def _checkpointed(fn: Callable[..., Any], outside: Callable[[], Any], *, reentrant: bool) -> Any:
    x, weight = _x(), _x()
    modes = []

    def body(x):
        parts = fn(x * weight)
        modes.append(gradguard.grad_state())
        return _sum(lambda _: parts)(x)

    with outside():
        loss = checkpoint(body, x, use_reentrant=reentrant)
    if loss.requires_grad:
        loss.backward()
    return _shown((loss, x.grad, weight.grad)), modes


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_checkpoint(program, reentrant):
    """A checkpointed body is run again in the same modes, with the same gradients."""
    for guard in GUARDS.values():
        for outside in OUTSIDES.values():
            expected = _checkpointed(program(torch, guard), outside, reentrant=reentrant)
            ours = _checkpointed(program(gradguard, guard), outside, reentrant=reentrant)
            assert ours == expected


def _tangents(fn: Callable[..., Any]) -> Any:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        return [_shown(forward_ad.unpack_dual(part)) for part in fn(dual)]


@pytest.mark.parametrize("outside", OUTSIDES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_forward_mode(program, outside):
    """Forward-mode derivatives pass a guard, or not, as they pass torch's."""
    for guard in GUARDS.values():
        with OUTSIDES[outside]():
            assert _tangents(program(gradguard, guard)) == _tangents(program(torch, guard))


STEPS = st.lists(st.sampled_from(["no_grad", "enable_grad", *SETTERS, "leave", "op"]), max_size=12)


def _of_steps(ns: Any, steps: list[str]) -> Callable[..., Any]:
    def fn(x):
        parts, open_guards = [x * x], []
        for step in steps:
            if step == "op":
                parts.append(x * parts[-1])
            elif step != "leave":
                open_guards.append(GUARDS[step](ns))
                open_guards[-1].__enter__()
            elif open_guards:
                open_guards.pop().__exit__(None, None, None)
        parts.append(x * parts[-1])
        while open_guards:
            open_guards.pop().__exit__(None, None, None)
        return (*parts, x * x)

    return fn


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_any_nest_of_grad_modes(steps):
    """Whatever grad guards a function nests, traces, derivatives and checkpoints are torch's."""
    ours, theirs = _of_steps(gradguard, steps), _of_steps(torch, steps)
    assert _traced(ours, pre_dispatch=True) == _traced(theirs, pre_dispatch=True)
    x = torch.tensor([1.0, 2.0])
    assert _shown(func.grad(_sum(ours))(x)) == _shown(func.grad(_sum(theirs))(x))
    for reentrant in (True, False):
        expected = _checkpointed(theirs, nullcontext, reentrant=reentrant)
        assert _checkpointed(ours, nullcontext, reentrant=reentrant) == expected
