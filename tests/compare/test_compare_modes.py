"""gradguard.compare_modes: what a function costs under each mode, and that nothing else changes."""

import asyncio
import functools
import random
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradguard
from gradguard import compare_modes, grad_state
from gradguard._compare import accelerator as _accelerator
from gradguard._compare import measuring as _measure
from gradguard._compare import putting_back as _snapshot
from gradguard._compare import table as texts
from gradguard._compare.figures import ModeComparison, ModeFigures
from gradguard._compare.reachable import reachable_from
from gradguard._compare.saved_bytes import SavedBytes
from gradguard._core.places import file_shown

MODES = ("grad", "no_grad", "inference_mode")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(_measure, "_SECONDS", 1e-5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare(fn, *args, **kwargs):
    return compare_modes(fn, args, kwargs, repeats=1)


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


x = torch.ones(8, 4)
image = torch.ones(2, 3, 8, 8)


class TestKeptBytes:
    def test_of_a_linear_layer_are_its_input(self):
        """A linear layer keeps its input; its weight, a parameter, does not count."""
        assert compare(nn.Linear(4, 2), x).grad.kept_bytes == x.nbytes

    def test_of_relu_are_its_result(self):
        """What is kept is the result where backward needs the result."""
        leaf = x.clone().requires_grad_()
        assert compare(lambda y: y.relu() + 0, leaf * 2).grad.kept_bytes == x.nbytes

    def test_are_zero_where_nothing_is_recorded(self):
        """no_grad and inference_mode keep nothing."""
        comparison = compare(conv_net(), image)
        assert [figures.kept_bytes > 0 for figures in comparison] == [True, False, False]

    def test_show_a_function_that_turns_grad_on_itself(self):
        """Under no_grad, what fn records inside its own enable_grad is counted."""

        def records():
            with torch.enable_grad():
                return nn.Linear(4, 2)(x)

        assert compare(records).no_grad.kept_bytes == x.nbytes

    def test_count_a_storage_once(self):
        """Three saved tensors that share a storage count as that storage, whole."""
        leaf = torch.ones(10, 10, requires_grad=True)

        def shares():
            y = leaf + 0
            return y * y, y[:5] * y[5:], y.t().exp().sum() * 0

        assert compare(shares).grad.kept_bytes == 2 * leaf.nbytes  # y, and the result of exp

    def test_do_not_count_parameters_wherever_the_module_is(self):
        """A frozen parameter that fn is not seen to lead to does not count either."""

        class Registry:
            layer = nn.Linear(4, 4).requires_grad_(False)

        leaf = torch.ones(8, 4, requires_grad=True)
        assert compare(lambda: Registry.layer(leaf) * 1).grad.kept_bytes == 0

    def test_are_counted_for_a_function_that_returns_nothing(self):
        """The graph is gone when such a function returns, but was kept until then."""
        layer = nn.Linear(4, 2)

        def returns_nothing():
            layer(x)

        assert compare(returns_nothing).grad.kept_bytes == x.nbytes

    def test_are_the_most_at_one_time(self):
        """Two graphs of which the first is dropped before the second is made count as one."""
        layer = nn.Linear(4, 2)

        def twice():
            layer(x + 1).sum().item()
            layer(x + 2).sum().item()

        assert compare(twice).grad.kept_bytes == x.nbytes

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    def test_of_sparse_tensors_are_their_parts(self):
        """A sparse tensor has no storage of its own: its indices and values have."""
        for sparse in (torch.eye(4).to_sparse(), torch.eye(4).to_sparse_csr()):
            weight = torch.ones(4, 4, requires_grad=True)
            parts = (
                (sparse._indices(), sparse._values())
                if sparse.layout is torch.sparse_coo
                else (sparse.crow_indices(), sparse.col_indices(), sparse.values())
            )
            kept = compare(functools.partial(torch.mm, sparse, weight)).grad.kept_bytes
            assert kept == sum(part.untyped_storage().nbytes() for part in parts)

    def test_work_on_meta(self):
        """A module on meta tells what it would keep, without memory or values."""
        with torch.device("meta"):
            net, big = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.ones(1 << 20, 4)
        assert compare(net, big).grad.kept_bytes > 2 * big.nbytes

    def test_see_the_input_of_a_checkpoint_alone(self):
        """Inside an activation checkpoint the checkpoint's own hooks are asked, not these."""
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        leaf = x.clone().requires_grad_()
        assert (
            compare(lambda: checkpoint(net, leaf, use_reentrant=False)).grad.kept_bytes == x.nbytes
        )

    def test_survive_opaque_and_lazy_parameters_elsewhere(self):
        """Parameters alive elsewhere in the process, whose memory cannot be had, do no harm."""
        elsewhere = (nn.LazyLinear(2), nn.Parameter(torch.ones(2, 2).to_mkldnn()))
        assert compare(nn.Linear(4, 2), x).grad.kept_bytes == x.nbytes
        del elsewhere

    def test_let_go_of_a_result_that_saves_itself(self):
        """Counting makes no cycle: what autograd saved is free as soon as the graph is."""
        kept = SavedBytes()
        leaf = torch.ones(4, requires_grad=True)
        with kept.hooks():
            result = leaf.exp()
            assert kept._now == leaf.nbytes
            del result
        assert (kept._now, kept.most, kept._users) == (0, leaf.nbytes, {})

    def test_do_not_disturb_backward(self):
        """Backward inside the hooks gives the gradient that it gives outside."""
        leaf = torch.ones(4, requires_grad=True)
        with SavedBytes().hooks():
            (leaf.exp() * leaf).sum().backward()
        assert torch.equal(leaf.grad, 2 * torch.ones(4).exp())

    steps = st.sampled_from(
        (
            lambda y: y.relu(),
            lambda y: y.exp(),
            lambda y: y * y,
            lambda y: y[:, :2].repeat(1, 2),
            lambda y: y.t().t(),
            lambda y: torch.softmax(y, 0) @ y.t() @ y,
            lambda y: y + 1,
            lambda y: y.expand(8, 4).mul(2),
        )
    )

    @given(st.lists(steps, max_size=8))
    @settings(deadline=None, max_examples=25)
    def test_are_what_the_graph_holds(self, program):
        """Whatever fn computes: all that its graph's nodes say they saved, each storage once."""
        leaf = torch.ones(8, 4, requires_grad=True)
        run = functools.partial(functools.reduce, lambda y, step: step(y), program, leaf)
        result = run()  # alive meanwhile, or storages would be given again
        kept = SavedBytes()
        with kept.hooks():
            again = run()
        assert kept.most == sum(storage.nbytes() for storage in saved_in(result))
        del again


def saved_in(result):
    """Ask the nodes themselves what they saved, independent of hooks; numbers are no tensors."""
    nodes, storages = [result.grad_fn], set()
    for node in nodes:
        nodes += [n for n, _ in (node.next_functions if node else ()) if n and n not in nodes]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        storages |= {v.untyped_storage() for v in saved if isinstance(v, torch.Tensor) and v.dim()}
    return storages


class TestGraphNodes:
    def test_are_those_that_the_result_leads_to(self):
        """Addmm, the weight's transposition, and one that accumulates for each parameter."""
        comparison = compare(nn.Linear(4, 2), x)
        assert [figures.graph_nodes for figures in comparison] == [4, 0, 0]

    def test_of_several_results_count_once(self):
        """The nodes that two tensors of a structure share count once."""
        leaf = torch.ones(2, requires_grad=True)

        def two():
            y = leaf * 2
            return {"a": [y + 1], "b": (y + 2,)}

        assert compare(two).grad.graph_nodes == 4  # two sums, the product, the accumulation

    def test_of_the_arguments_do_not_count(self):
        """A graph that led to an argument before the call was not recorded by it."""
        before = torch.ones(2, requires_grad=True).exp().sin()
        comparison = compare(lambda y: y + 1, before)
        assert [figures.graph_nodes for figures in comparison] == [1, 0, 0]

    @pytest.mark.parametrize("result", [None, 3, {"loss": 1.5}])
    def test_are_unknown_without_a_tensor(self, result):
        """Where no tensor is returned the graph cannot be counted, and the table says so."""
        comparison = compare(lambda: result)
        assert [figures.graph_nodes for figures in comparison] == [None] * 3
        assert "no tensor in what fn returned" in str(comparison)


class TestTimes:
    def test_one_a_round_and_mode(self):
        """Each mode has one time for each of the repeats."""
        comparison = compare_modes(lambda: None, repeats=4)
        assert [len(figures.times) for figures in comparison] == [4, 4, 4]
        assert all(time > 0 for figures in comparison for time in figures.times)

    def test_are_taken_in_turns_that_rotate(self):
        """The modes take turns, and each is first, second and last in one of three rounds."""
        seen = []

        def note():
            if not seen or seen[-1] != grad_state():
                seen.append(grad_state())

        compare_modes(note, repeats=3)
        grad, no_grad, inference = seen[:3]
        turns = [grad, no_grad, inference, no_grad, inference, grad, inference, grad, no_grad]
        assert seen == [grad, no_grad, inference] * 2 + turns

    def test_are_those_of_the_mode(self):
        """Each mode is measured under that mode, wherever compare_modes is called."""
        expected = [(True, False), (False, False), (False, True)]
        for guard in (torch.enable_grad, torch.no_grad, torch.inference_mode, gradguard.no_grad):
            seen = {}
            with guard():
                before = grad_state()
                compare(lambda: seen.setdefault(tuple(grad_state())))  # noqa: B023 (called at once)
                assert grad_state() == before
            assert list(seen) == expected

    def test_use_the_threads_that_torch_uses(self):
        """torch.utils.benchmark would take one thread; the user's number is measured."""
        before, seen = torch.get_num_threads(), set()
        torch.set_num_threads(2)
        try:
            comparison = compare(lambda: seen.add(torch.get_num_threads()))
        finally:
            torch.set_num_threads(before)
        assert (comparison.threads, seen) == (2, {2})

    def test_are_of_a_slow_function_after_few_calls(self):
        """Two calls before, and two a turn: a function of a second does not take for ever."""
        calls = []
        compare_modes(lambda: sum(range(100_000)) and calls.append(1), repeats=2)
        assert len(calls) <= 3 * (2 + 2 * 2)

    @given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9))
    def test_have_a_median_and_a_spread(self, times):
        """Whatever the times: the median lies among them, and the spread is no less than 0."""
        figures = ModeFigures("grad", tuple(times), 0, 0, None)
        assert min(times) <= figures.seconds <= max(times)
        assert figures.spread >= 0
        assert figures.ratio_to(figures) == 1

    def test_are_compared_within_rounds(self):
        """A machine that is ten times slower in some rounds does not change the ratio."""
        grad = ModeFigures("grad", (1.0, 10.0, 1.0, 10.0, 10.0), 0, 0, None)
        other = ModeFigures("no_grad", (0.5, 5.0, 0.5, 5.0, 0.5), 0, 0, None)
        assert other.ratio_to(grad) == 0.5
        assert statistics.median(other.times) / statistics.median(grad.times) == 0.05


class Merging(nn.Linear):
    """As a LoRA layer: its train() changes its weights."""

    merged = False

    def train(self, mode=True):
        if mode is self.merged:
            self.weight.data += -1 if mode else 1
            self.merged = not mode
        return super().train(mode)


def state_of(net):
    return (
        [module.training for module in net.modules()],
        [buffer.clone() for buffer in net.buffers()],
        [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in net.parameters()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002 (the global state is what fn may use)
        grad_state(),
    )


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


def backward(net):
    with torch.inference_mode(mode=False), torch.enable_grad():
        net(torch.ones(2, 3, 8, 8)).sum().backward()


def replace_buffer(net):
    with torch.inference_mode(mode=False):
        net[1].running_mean = torch.ones(4)


CHANGES = {
    "eval": lambda net: net.eval(),
    "train one": lambda net: net[3].train(),
    "forward": lambda net: net(torch.ones(2, 3, 8, 8)),
    "backward": backward,
    "zero_grad": lambda net: net.zero_grad(),
    "replace buffer": replace_buffer,
    "write to data": lambda net: net[1].running_var.data.mul_(2),
    "draw": lambda net: (torch.rand(1), random.random(), np.random.rand()),  # noqa: NPY002, S311
}


class Stop(BaseException):
    pass


class TestStateIsPutBack:
    @given(
        changes=st.lists(st.sampled_from(sorted(CHANGES)), max_size=6),
        frozen=st.booleans(),
        with_gradients=st.booleans(),
        error=st.sampled_from([None, ValueError, KeyboardInterrupt, Stop]),
    )
    @settings(deadline=None, max_examples=25)
    def test_whatever_fn_does(self, changes, frozen, with_gradients, error):
        """Flags, buffers, gradients, random state and mode: whatever fn does, raising included."""
        net = conv_net()
        net[1].train(not frozen)
        if with_gradients:
            backward(net)
        before = state_of(net)

        def fn():
            for name in changes:
                CHANGES[name](net)
            if error:
                raise error

        if error is None:
            compare(fn)
        else:
            with pytest.raises(RuntimeError if error is ValueError else error):
                compare(fn)
        assert same(state_of(net), before)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda net: net,
            lambda net: net.forward,
            functools.partial,
            lambda net: lambda y: net(y) + 0,
            lambda net: functools.wraps(net.forward)(lambda y: [n(y) for n in (net,)]),
            lambda net: SimpleNamespace(net={"a": [net]}).net["a"][0].forward,
            lambda net: torch.no_grad()(net.forward),
        ],
    )
    def test_however_fn_leads_to_the_module(self, wrap):
        """BatchNorm statistics are back for a module, method, partial, closure and wrapper."""
        net = conv_net()
        compare(wrap(net), image)
        assert net[1].num_batches_tracked == 0

    def test_for_each_turn(self):
        """Every mode starts from the same state: it draws the same numbers on the same flags."""
        net, seen = nn.BatchNorm1d(4), {}

        def fn():
            key = (torch.rand(1).item(), random.random(), net.training)  # noqa: S311
            seen.setdefault(grad_state(), []).append(key)
            net.eval()

        compare(fn)
        assert len({calls[0] for calls in seen.values()}) == 1

    def test_of_a_generator_that_is_an_argument(self):
        """The state of a torch.Generator that fn draws from is back."""
        generator = torch.Generator().manual_seed(3)
        before = generator.get_state()
        compare(torch.rand, 2, generator=generator)
        assert torch.equal(generator.get_state(), before)

    def test_of_modules_that_override_train(self):
        """A train() of its own is called to undo an eval(): weights it merged are unmerged."""
        net = nn.Sequential(Merging(4, 4))
        weight = net[0].weight.detach().clone()
        compare(lambda: net.eval()(x))
        assert torch.allclose(net[0].weight, weight)
        assert (net[0].merged, net[0].training) == (False, True)

    def test_of_tensors_that_forward_stores(self):
        """A cache or hidden state of one mode is not left to the next, nor to the caller."""

        class Stateful(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = nn.RNNCell(4, 4)
                self.hidden = self.kept = torch.zeros(8, 4)

            def forward(self, y):
                self.hidden = self.cell(y, self.hidden.detach())
                self.extra = self.hidden
                self.calls = getattr(self, "calls", 0) + 1
                return self.hidden

        net = Stateful()
        compare(net, x)
        assert net.hidden is net.kept
        assert not hasattr(net, "extra")
        assert net.calls > 6  # not a tensor, so not undone

    @pytest.mark.parametrize("registered", [False, True])
    def test_of_tensors_that_forward_writes_into(self, registered):
        """A key-value cache that is filled or grown in place is empty again for each mode."""

        class Caching(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 4)
                if registered:
                    self.register_buffer("cache", torch.zeros(4))
                else:
                    self.cache = torch.zeros(4)

            def forward(self, y):
                with torch.no_grad():
                    self.cache.add_(1)
                    self.cache.resize_(len(self.cache) + 1)
                return self.layer(y)

        net = Caching()
        cache = net.cache
        compare(net, x)
        assert net.cache is cache
        assert torch.equal(cache, torch.zeros(4))

    def test_of_buffers_made_in_inference_mode(self):
        """A buffer that only inference mode may write to is written to in inference mode."""
        with torch.inference_mode():
            net = nn.BatchNorm1d(4)
        net.weight = net.bias = None
        net.num_batches_tracked = torch.tensor(0)

        def fn():
            with torch.inference_mode():
                net(x)

        compare(fn)
        assert net.running_mean.is_inference()
        assert torch.equal(net.running_mean, torch.zeros(4))

    def test_without_spoiling_graphs_of_the_caller(self):
        """Buffers that did not change are not written to: a pending backward still works."""
        net = conv_net().eval()
        loss = net(image).sum()
        compare(net, image)
        loss.backward()

    def test_of_sparse_gradients(self):
        """An embedding's sparse gradient is the same object with the same values."""
        net = nn.Embedding(5, 2, sparse=True)
        index = torch.tensor([1, 2])
        net(index).sum().backward()
        gradient, values = net.weight.grad, net.weight.grad.to_dense()

        def accumulate():
            with torch.inference_mode(mode=False), torch.enable_grad():
                net(index).sum().backward()

        compare(accumulate)
        assert net.weight.grad is gradient
        assert torch.equal(gradient.to_dense(), values)

    def test_of_gradients_of_arguments(self):
        """The gradient of a leaf tensor that is an argument is back."""
        leaf = torch.ones(2, requires_grad=True)

        def fn(y):
            with torch.inference_mode(mode=False), torch.enable_grad():
                y.sum().backward()

        compare(fn, leaf)
        assert leaf.grad is None

    def test_so_that_training_goes_on_under_autocast(self):
        """Autocast caches the casts of weights: those made under one mode spoil no other."""
        net = nn.Linear(4, 2)
        with torch.autocast("cpu", torch.bfloat16):
            comparison = compare_modes(net, (x,), repeats=3)
            net(x).sum().backward()
        assert comparison.grad.graph_nodes > 4
        assert net.weight.grad is not None

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_of_a_scripted_module(self):
        """A ScriptModule keeps its flags and buffers where Python does not see them."""
        net = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval())
        before = [buffer.clone() for buffer in net.buffers()]
        compare(lambda: net.train()(x))
        assert same(list(net.buffers()), before)
        assert not any(module.training for module in net.modules())

    def test_of_a_compiled_module(self):
        """A compiled module is compiled once for each mode, and its state is back."""
        compiled = []
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        fast = torch.compile(net, backend=lambda gm, _: compiled.append(1) or gm, fullgraph=True)
        comparison = compare_modes(fast, (x,), repeats=2)
        assert len(compiled) <= 3
        assert comparison.grad.kept_bytes > 0
        assert net[1].num_batches_tracked == 0
        torch.compiler.reset()


class TestFailures:
    @pytest.mark.parametrize("mode", MODES)
    def test_name_the_mode_the_step_and_the_line(self, mode):
        """Which mode failed, doing what, with which error, on which line, and what to do."""

        def fn():
            if grad_state() == states[mode]:
                helper()

        def helper():
            torch.ones(1).apply_(lambda value: 1 / 0)

        states = dict(zip(MODES, [(True, False), (False, False), (False, True)], strict=True))
        with pytest.raises(RuntimeError) as caught:
            compare(fn)
        message = str(caught.value)
        assert f"fn failed under {mode}, while running it for the first time" in message
        assert "ZeroDivisionError: division by zero" in message
        line = helper.__code__.co_firstlineno + 1
        assert f"\n  at {file_shown(__file__)}:{line} in <lambda>\n" in message
        assert f"To do: {_measure._ADVICE[mode]}. {_measure._RESTORED}" in message
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_of_a_training_step(self):
        """A backward cannot run under no_grad: the message shows the forward alone as the way."""
        net = nn.Linear(4, 2)
        with pytest.raises(
            RuntimeError, match=r"under no_grad.*\n.*does not require grad[^$]*forward"
        ):
            compare(lambda: net(x).sum().backward())
        assert net.weight.grad is None

    def test_of_inference_mode_alone(self):
        """What only inference mode refuses is said to be refused by inference mode."""
        with pytest.raises(RuntimeError, match=r"under inference_mode.*\n.*version counter"):
            compare(lambda: torch.ones(1)._version)

    def test_of_tensors_made_in_inference_mode(self):
        """An argument that grad cannot record is said to fail under grad."""
        with torch.inference_mode():
            y = torch.ones(8, 4)
        with pytest.raises(
            RuntimeError, match=r"under grad.*\n.*Inference tensors[^$]*outside infer"
        ):
            compare(nn.Linear(4, 2), y)

    @pytest.mark.parametrize(
        ("call", "step"), [(4, "counting what autograd keeps"), (7, "timing it")]
    )
    def test_of_a_later_call(self, call, step):
        """A function that fails later is said to fail while counting, or while timing."""
        calls = iter(range(1, call))

        def fn():
            next(calls)

        with pytest.raises(RuntimeError, match=f"under grad, while {step}:\n  StopIteration"):
            compare(fn)

    def test_without_a_line_of_the_user(self):
        """A function of torch has no line of the user's; the error is there all the same."""
        with pytest.raises(RuntimeError, match=r"under grad") as caught:
            compare(torch.mm, x, x)
        assert "mat1 and mat2 shapes cannot be multiplied" in str(caught.value)
        assert "\n  at " not in str(caught.value).replace(__file__, "")

    def test_of_functorch(self):
        """torch.func.grad refuses saved-tensor hooks; the message passes its reason on."""
        with pytest.raises(
            RuntimeError, match=r"counting what autograd keeps:\n.*saved tensor hooks"
        ):
            compare(torch.func.grad(torch.sum), x)

    def test_of_a_function_that_leaves_the_mode_switched(self):
        """Its later calls would be measured in the wrong mode: refused, and the mode put back."""
        with pytest.raises(RuntimeError, match=r"under grad and left the thread in another mode"):
            compare(torch.set_grad_enabled, False)
        assert torch.is_grad_enabled()

    def test_of_functions_whose_call_runs_nothing(self):
        """A coroutine or generator is refused with a way to run it, and is closed."""

        async def coroutine():
            await asyncio.sleep(0)

        def generator():
            yield 1

        async def async_generator():
            yield 1

        for fn, way in (
            (coroutine, "asyncio.run"),
            (generator, r"list\(fn"),
            (async_generator, "a loop over it"),
        ):
            with pytest.raises(TypeError, match=f"returned a {fn.__name__} whose body.*{way}"):
                compare(fn)

    @pytest.mark.parametrize("value", [x, None, "net"])
    def test_of_what_cannot_be_called(self, value):
        """The value of a call instead of the function is refused by its type."""
        with pytest.raises(TypeError, match=f"got {type(value).__name__}: pass the function"):
            compare_modes(value)

    @pytest.mark.parametrize("repeats", [0, -1])
    def test_of_too_few_repeats(self, repeats):
        """Fewer than one round is refused."""
        with pytest.raises(
            ValueError, match=rf"^compare_modes\(repeats=.*at least 1, got {repeats}"
        ):
            compare_modes(lambda: None, repeats=repeats)

    @pytest.mark.parametrize("repeats", [1.5, "3", None, True])
    def test_of_repeats_that_are_no_int(self, repeats):
        """A number of rounds that is no int is refused, and a bool is none."""
        with pytest.raises(
            TypeError, match=rf"^compare_modes\(repeats=.*got '?{repeats}'? of type"
        ):
            compare_modes(lambda: None, repeats=repeats)

    @pytest.mark.parametrize("args", [x, [x], None, "x"], ids=["tensor", "list", "none", "str"])
    def test_of_arguments_that_are_no_tuple(self, args):
        """The arguments come as a tuple, as torch.export takes them."""
        with pytest.raises(TypeError, match=rf"got {type(args).__name__}: write .*\(x,\)"):
            compare_modes(nn.Identity(), args)

    @pytest.mark.parametrize("kwargs", [[("a", 1)], {1: 2}, "a=1"])
    def test_of_keyword_arguments_that_are_no_dict(self, kwargs):
        """The keyword arguments come as a dict by name."""
        with pytest.raises(TypeError, match=r"as a dict by name, got .*: write "):
            compare_modes(nn.Identity(), (x,), kwargs)

    def test_of_a_lazy_module(self):
        """A first forward would give it parameters for good, so it is refused."""
        net = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
        with pytest.raises(ValueError, match=r"0\.weight, .*1\.running_mean.*run the module once"):
            compare(net, x)


def fake_accelerator():
    state = SimpleNamespace(rng=[1, 2], now=100, peak=0, resets=0)

    def reset():
        state.resets += 1
        state.peak = state.now

    return state, SimpleNamespace(
        get_rng_state_all=lambda: list(state.rng),
        set_rng_state_all=lambda value: setattr(state, "rng", list(value)),
        reset_peak_memory_stats=reset,
        memory_allocated=lambda: state.now,
        max_memory_allocated=lambda: state.peak,
    )


class TestAccelerator:
    def test_peak_memory_is_what_a_call_adds(self, monkeypatch):
        """The peak is counted from what was allocated before the call, and for each mode."""
        state, device = fake_accelerator()
        monkeypatch.setattr(_measure, "accelerator", lambda: device)

        def fn():
            state.peak = max(state.peak, state.now + (50 if grad_state().grad_enabled else 20))

        comparison = compare(fn)
        assert [figures.peak_bytes for figures in comparison] == [50, 20, 20]
        assert state.resets == 3
        assert "peak memory" in str(comparison)
        assert "0.40x" in str(comparison)

    def test_random_state_is_back(self, monkeypatch):
        """The random state of every device is back."""
        state, device = fake_accelerator()
        monkeypatch.setattr(_snapshot, "accelerator", lambda: device)
        compare(lambda: state.rng.append(3))
        assert state.rng == [1, 2]

    def test_random_state_of_one_device_is_back(self, monkeypatch):
        """So is that of an accelerator that is one device, as mps is; it tells no peak."""
        rng = [7]
        device = SimpleNamespace(get_rng_state=lambda: list(rng), set_rng_state=rng.__init__)
        monkeypatch.setattr(_snapshot, "accelerator", lambda: device)
        monkeypatch.setattr(_measure, "accelerator", lambda: device)
        comparison = compare(lambda: rng.append(8))
        assert rng == [7]
        assert comparison.grad.peak_bytes is None
        assert "peak" not in str(comparison)

    def test_is_the_one_that_torch_has(self, monkeypatch):
        """None where torch has none at hand, otherwise the module of the current one."""
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        assert _accelerator.accelerator() is None
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        assert _accelerator.accelerator() is torch.cuda


class TestHeld:
    def test_by_what_fn_names_and_binds(self):
        """Closures, defaults, attributes, slots, containers and the functions that fn calls."""
        nets = [nn.Linear(1, 1) for _ in range(8)]
        closed_over = nets[1]

        class Slotted:
            __slots__ = ("net",)

        class Holder:
            def __init__(self, net):
                self.parts = {"net": [net]}

            def predict(self):
                return self.parts

        slotted = Slotted()
        slotted.net = nets[0]

        def inner():
            return closed_over

        def fn(a=nets[2], *, b=nets[3]):
            return (lambda: [inner()]), slotted, a, b

        fn.attribute = nets[7]
        held = reachable_from(fn, Holder(nets[4]).predict, (nets[5],), {"key": {1: nets[6]}})
        assert {id(net) for net in nets} <= {id(value) for value in held}

    def test_by_globals_that_it_names_alone(self, monkeypatch):
        """A global module counts if the code of fn, or of a lambda in it, names it."""
        named, other = nn.Linear(1, 1), nn.Linear(1, 1)
        monkeypatch.setitem(globals(), "a_net", named)
        monkeypatch.setitem(globals(), "another_net", other)
        held = reachable_from(lambda: [(lambda: a_net)])  # noqa: F821 (set above)
        assert named in held
        assert other not in held

    def test_runs_no_code_of_what_it_looks_at(self):
        """Lazy proxies are not woken, and a variable that is not set yet is passed over."""

        class Proxy:
            def __getattribute__(self, name):
                raise AssertionError(name)

        proxy = Proxy()

        def fn():
            return proxy, later

        assert reachable_from(fn, proxy) == []
        later = 1


def comparison_of(*, nodes=5, peak=None, kept=2048):
    return ModeComparison(
        ModeFigures("grad", (2e-3, 1e-3, 3e-3), kept, nodes, peak),
        ModeFigures("no_grad", (1e-3, 1e-3, 1.5e-3), 0, 0, peak and peak // 4),
        ModeFigures("inference_mode", (5e-7, 5e-7, 5e-7), 0, 0, peak and peak // 4),
        threads=2,
        torch_version="2.x",
    )


class TestTable:
    def test_has_a_row_a_mode_with_ratios_to_grad(self):
        """Times, spread, kept bytes and nodes of each mode, beside the ratios to grad's."""
        assert str(comparison_of()).splitlines() == [
            "                time/call        ratio  kept for backward  ratio  graph nodes",
            "grad              2.00 ms  ±25%  1.00x            2.0 KiB  1.00x            5",
            "no_grad           1.00 ms  ±12%  0.50x                0 B  0.00x            0",
            "inference_mode     500 ns   ±0%  0.00x                0 B  0.00x            0",
            (
                "median of 3 interleaved round(s), ± half their interquartile range; "
                "2 thread(s), torch 2.x"
            ),
        ]

    def test_has_peak_memory_where_it_is_known(self):
        """On an accelerator two more columns."""
        heading, grad, no_grad, *_ = str(comparison_of(peak=4 << 20)).splitlines()
        assert heading.endswith("graph nodes  peak memory  ratio")
        assert grad.endswith("4.0 MiB  1.00x")
        assert no_grad.endswith("1.0 MiB  0.25x")

    def test_has_a_dash_where_there_is_no_ratio(self):
        """Nothing kept under grad has no ratio, and no node count is said to be unknown."""
        _, grad, *_, note = str(comparison_of(kept=0, nodes=None)).splitlines()
        assert grad.split()[-3:] == ["B", "-", "-"]
        assert note.startswith("graph nodes: no tensor in what fn returned")

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(2.5, "2.50 s"), (0.999, "999.00 ms"), (1.5e-6, "1.50 µs"), (31e-9, "31 ns")],
    )
    def test_writes_times_with_their_unit(self, seconds, text):
        """Seconds down to nanoseconds."""
        assert texts.duration(seconds) == text

    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
            (1 << 31, "2.0 GiB"),
        ],
    )
    def test_writes_bytes_with_their_unit(self, count, text):
        """Bytes up to gibibytes."""
        assert texts.size(count) == text


class Rebuilding(nn.Module):
    """A module that changes what it is made of in one way."""

    def __init__(self, change):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(2))
        self.cache = {"a": 1}
        self.state = torch.zeros(1)
        self.calls = 0
        self.change = change

    def forward(self, x):
        self.calls += 1
        self.change(self)
        return x * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "cache", None),
        lambda net: net.__dict__.pop("cache", None),
        lambda net: setattr(net, "state", None),
        lambda net: net.__dict__.pop("state", None),
        lambda net: setattr(net, "state", "none yet"),
        lambda net: setattr(net, "mean", None),
        lambda net: net._buffers.pop("mean", None),
        lambda net: setattr(net, "weight", None),
        lambda net: setattr(net, "weight", nn.Parameter(torch.zeros(2))),
        lambda net: net._parameters.pop("weight", None),
        lambda net: setattr(net, "layer", None),
        lambda net: net._modules.pop("layer", None),
        lambda net: setattr(net, "layer", nn.Identity()),
        lambda net: setattr(net, "extra", torch.ones(1)),
        lambda net: net.register_buffer("more", torch.ones(1)),
    ],
)
def test_what_a_call_replaces_sets_to_none_or_deletes_is_put_back(change):
    """Attributes, parameters, buffers and submodules are afterwards those of before."""
    net = Rebuilding(change)
    registered = ("_parameters", "_buffers", "_modules")
    before = {name: dict(vars(net)[name]) for name in registered}
    attributes = {name: vars(net)[name] for name in vars(net) if name not in registered}
    compare(net, x)
    for name in registered:
        assert [*vars(net)[name]] == [*before[name]]
        assert all(vars(net)[name][key] is before[name][key] for key in before[name])
    del attributes["calls"]
    assert vars(net).keys() == {*registered, *attributes, "calls"}
    assert all(vars(net)[name] is value for name, value in attributes.items())
    assert net.calls > 0  # a counter is left alone
