"""Compiled functions under trace(): the same results, graphs and counts, during and after."""

import pytest
import torch
from torch._dynamo import lookup_backend
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

import gradguard
from gradguard import GradState, grad_state
from gradguard._trace.trace import trace

ON, OFF = GradState(True, False), GradState(False, False)
BACKENDS = ("eager", "aot_eager", "inductor")
weight = torch.ones(3, requires_grad=True)


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.set_grad_enabled(True)


def by_torch(x):
    with torch.no_grad():
        y = weight * x
    return (weight * x).sum() + y.sum()


def by_gradguard(x):
    with gradguard.no_grad():
        y = weight * x
    return (weight * x).sum() + y.sum()


def by_inference(x):
    with torch.inference_mode():
        weight * x
    return (weight * x).sum()


def directly(x):
    torch._C._set_grad_enabled(False)
    y = weight * x
    torch._C._set_grad_enabled(True)
    return (weight * x).sum() + y.sum()


@torch.no_grad()
def decorated(x):
    return weight * x


def leaving(x):
    torch.set_grad_enabled(False)
    return weight * x


def outcome(function):
    """What a call gives, does to the mode, and gives in backward."""
    torch.set_grad_enabled(True)
    weight.grad = None
    result = function(torch.ones(3))
    state = grad_state()
    torch.set_grad_enabled(True)
    if result.requires_grad:
        result.sum().backward()
    grad = None if weight.grad is None else weight.grad.tolist()
    return result.tolist(), result.requires_grad, state, grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [by_torch, by_gradguard])
def test_function_compiled_under_a_trace_is_the_same_during_and_after(backend, function):
    """No break, one compilation in all, eager's results; after the trace nothing is recorded."""
    expected = outcome(function)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    with trace() as found:
        assert outcome(compiled) == expected
        assert outcome(compiled) == expected
    count = len(found)
    assert outcome(compiled) == expected
    assert counter.frame_count == 1
    assert len(found) == count
    assert found.left_switched() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_function_compiled_before_a_trace_is_not_compiled_anew(backend):
    """A trace that begins later changes nothing of it."""
    expected = outcome(by_torch)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(by_torch, fullgraph=True, backend=counter)
    assert outcome(compiled) == expected
    with trace():
        assert outcome(compiled) == expected
    assert counter.frame_count == 1


@pytest.mark.parametrize("function", [by_inference, directly, decorated, leaving])
def test_other_ways_to_switch_compile_alike(function):
    """Inference mode, the C function, decorators, and a mode that is left switched."""
    expected = outcome(function)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with trace():
        assert outcome(compiled) == expected
        assert outcome(compiled) == expected
    assert outcome(compiled) == expected


def test_graphs_are_the_same_as_without_a_trace():
    """The nodes by name and argument; and FX knows them as not to be dropped."""

    def nodes(function):
        graphs = []

        def backend(module, inputs):
            graphs.append(module)
            return lookup_backend("eager")(module, inputs)

        torch._dynamo.reset()
        torch.compile(function, fullgraph=True, backend=backend)(torch.ones(3))
        return graphs[0]

    for function in (by_torch, by_gradguard, directly):
        without = nodes(function)
        with trace():
            under = nodes(function)
        assert under.code == without.code
        under.graph.eliminate_dead_code()
        under.recompile()
        assert under.code == without.code


def test_what_the_compiler_switches_is_not_recorded():
    """Only the graph's own switches are, at the line that calls the compiled function."""
    compiled = torch.compile(by_torch, fullgraph=True, backend="eager")
    with trace() as found:
        compiled(torch.ones(3))
        first = list(found)
        compiled(torch.ones(3))
    changes = [(switch.before, switch.after) for switch in found]
    assert changes == [(ON, OFF), (OFF, ON)] * 2
    assert len(first) == 2
    assert {switch.filename for switch in found} == {__file__}


def test_block_with_a_graph_break_in_it_is_recorded():
    """What runs uncompiled inside a compiled function is recorded as ever."""

    def broken(x):
        with torch.no_grad():
            y = weight * x
            torch._dynamo.graph_break()
            y = y + 1
        return y.sum() + (weight * x).sum()

    expected = outcome(broken)
    compiled = torch.compile(broken, backend="eager")
    with trace() as found:
        assert outcome(compiled) == expected
        assert found.left_switched() == []
        compiled(torch.ones(3))
        assert grad_state() == ON
    assert len(found) >= 4
    assert outcome(compiled) == expected


def test_compiled_training_step_runs_under_a_trace():
    """Forward, backward and a stock optimizer's step, whose own guards are recorded as ours."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="aot_eager")
    with trace() as found:
        for _ in range(2):
            optimizer.zero_grad()
            compiled(torch.ones(3)).sum().backward()
            optimizer.step()
    assert found.left_switched() == []
    assert {switch.filename for switch in found} == {__file__}


@pytest.mark.parametrize("strict", [True, False])
def test_export_under_a_trace_is_the_same(strict):
    """The exported program names torch's own function or operator."""

    class Model(torch.nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = x * 2
            return y + x

    def export():
        program = torch.export.export(Model(), (torch.ones(3),), strict=strict)
        return program.graph_module.code

    expected = export()
    with trace():
        assert export() == expected


def test_make_fx_under_a_trace_is_the_same():
    """Also before dispatch, where grad mode is part of the graph."""

    def function(x):
        with torch.no_grad():
            y = x * 2
        return y + x

    def made():
        return make_fx(function, pre_dispatch=True)(torch.ones(3))

    expected = made()
    with trace():
        found = made()
    assert found.code == expected.code


def test_script_compiles_under_a_trace():
    """TorchScript resolves torch's guards as ever; its switches are C++ and are not seen."""

    def function(x):
        with torch.no_grad():
            y = x * 2
        return y + x

    with trace() as found:
        scripted = torch.jit.script(function)
        before = len(found)
        assert scripted(torch.ones(1)).item() == 3
    assert len(found) == before
