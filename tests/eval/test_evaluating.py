import asyncio
import copy
import gc
import inspect
import io
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradguard._eval import giving_flags_back as _entries
from gradguard._eval import modules_in_eval as _groups
from gradguard._eval import turns as _turns
from gradguard._eval.evaluating import evaluating
from gradguard._eval.giving_flags_back import threads_in_eval


class Told(nn.Module):
    """A module that overrides ``train()`` and keeps each mode it was called with."""

    def __init__(self, *children):
        super().__init__()
        self.calls = []
        self.fails = False
        for position, child in enumerate(children):
            self.add_module(str(position), child)

    def train(self, mode=True):
        self.calls.append(mode)
        if self.fails:
            msg = f"cannot train({mode})"
            raise RuntimeError(msg)
        return super().train(mode)


class LoRA(nn.Linear):
    """A layer that adds its low-rank update to the weight in eval mode, as loralib's does."""

    def __init__(self, size=3):
        super().__init__(size, size, bias=False)
        self.update = nn.Parameter(torch.randn(size, size))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged is mode:
            with torch.no_grad():
                self.weight.add_(self.update, alpha=-1.0 if mode else 1.0)
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.update.T)


class Backbone(nn.Sequential):
    """A backbone whose BatchNorm stays in eval mode whatever it is told, as mmcv's ResNet does."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


def net():
    """Build a tree with a frozen BatchNorm, nested twice."""
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval(), nn.Dropout(0.5))
    return nn.Sequential(nn.Linear(3, 3), block, nn.Dropout(0.5))


def flags(*modules):
    return [part.training for module in modules for part in module.modules()]


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    assert not _groups.groups
    assert not _entries._overrides_called
    assert not _turns._turns
    assert not _turns._ended
    assert not _turns._waits_for


def run(*steps):
    """Run the steps, each (thread, function), one after the other in these threads."""
    threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name, _ in steps}
    try:
        return [threads[name].submit(step).result() for name, step in steps]
    finally:
        for thread in threads.values():
            thread.shutdown()


# One scope


def test_each_submodule_gets_its_own_flag_back():
    """Inside, every submodule is in eval; after, a frozen BatchNorm is still the only one."""
    model = net()
    before = flags(model)
    with evaluating(model):
        assert not any(flags(model))
    assert flags(model) == before
    assert sorted(before)[:2] == [False, True]


def test_several_modules():
    """Every module that is passed is held, also one that is below another."""
    first, second = net(), net()
    with evaluating(first, second, first[1]):
        assert not any(flags(first, second))
    assert flags(first) == flags(second) == flags(net())


def test_an_exception_of_the_block_passes_and_the_flags_come_back():
    """The block's exception is not swallowed, and restores like a normal end."""
    model = net()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert flags(model) == flags(net())


def test_one_object_can_be_entered_again_and_nested():
    """One object is entered twice at once, then once more."""
    model = net()
    scope = evaluating(model)
    with scope:
        with scope:
            assert not any(flags(model))
        assert not any(flags(model))
    assert flags(model) == flags(net())
    with scope:
        assert not any(flags(model))
    assert flags(model) == flags(net())


@pytest.mark.parametrize("start", [True, False])
def test_train_inside_is_undone(start):
    """Where the user calls train() inside, the flags from before come back all the same."""
    model = net().train(start)
    before = flags(model)
    with evaluating(model):
        model.train()
    assert flags(model) == before


def test_a_scope_that_opens_after_train_inside_is_in_eval():
    """A second scope is in eval mode even where the first one's block called train()."""
    model = net()
    with evaluating(model):
        model.train()
        with evaluating(model):
            assert not any(flags(model))
    assert flags(model) == flags(net())


def test_a_module_removed_inside_gets_its_flag_back():
    """What was held is restored although it is no longer a part of the model."""
    model = net()
    with evaluating(model):
        removed, model[1] = model[1], nn.Identity()
    assert flags(removed) == flags(net()[1])


@pytest.mark.parametrize("flag", [True, False])
def test_a_module_added_inside_keeps_its_flag(flag):
    """A submodule that comes inside has the flag it came with; the next scope holds it too."""
    model = net()
    with evaluating(model):
        model.append(nn.Dropout().train(flag))
        assert model[-1].training is flag
        with evaluating(model):
            assert not model[-1].training
        assert model[-1].training is flag
    assert model[-1].training is flag


def test_shared_and_missing_submodules():
    """A submodule with two parents is held once, and a child that is None is no child."""
    shared = nn.Dropout()
    model = nn.Sequential(shared, nn.Sequential(shared))
    model.register_module("none", None)
    with evaluating(model):
        assert not any(flags(model))
    assert all(flags(model))


def test_equal_modules_are_two():
    """Modules that compare equal are still held one by one."""

    class Equal(nn.Module):
        def __eq__(self, other):
            return isinstance(other, Equal)

        __hash__ = None

    model = nn.ModuleList()
    model._modules = {"a": Equal(), "b": Equal().eval()}
    with evaluating(model):
        assert [m.training for m in model] == [False, False]
    assert [m.training for m in model] == [True, False]


# Overlapping scopes and threads


def test_closing_in_the_order_of_opening():
    """Of two scopes the first to close leaves the module in eval mode, the last restores."""
    model = net()
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(flags(model))
    second.__exit__(None, None, None)
    assert flags(model) == flags(net())


def test_overlap_on_a_submodule():
    """What only the closed scope held is restored; what the open one holds stays in eval."""
    model = net()
    whole, part = evaluating(model), evaluating(model[1])
    whole.__enter__()
    part.__enter__()
    whole.__exit__(None, None, None)
    assert model.training
    assert model[2].training
    assert not any(flags(model[1]))
    part.__exit__(None, None, None)
    assert flags(model) == flags(net())


def test_overlap_in_the_all_eval_case():
    """The bookkeeping holds where nothing must flip: train() between two closings is undone."""
    model = net().eval()
    scope = evaluating(model)
    steps = [scope.__enter__, scope.__enter__, lambda: scope.__exit__(None, None, None)]
    run(*zip("abb", steps, strict=True))
    model.train()
    run(("a", lambda: scope.__exit__(None, None, None)))
    assert not any(flags(model))


def test_a_scope_may_be_closed_in_another_thread():
    """A generator may leave its ``with`` in another thread than it entered it in."""
    model = net()

    def stream():
        with evaluating(model):
            yield flags(model)

    generator = stream()
    inside, _ = run(("a", lambda: next(generator)), ("b", generator.close))
    assert not any(inside)
    assert flags(model) == flags(net())


def test_a_thread_closes_its_own_scope():
    """Where two threads are in one object, an exit closes the scope of the thread that exits."""
    model = net()
    scope = evaluating(model)
    enter, leave = scope.__enter__, lambda: scope.__exit__(None, None, None)
    named = run(("a", enter), ("b", enter), ("a", leave), ("a", lambda: threads_in_eval(model)))[-1]
    assert [name[0] for name in named] == ["b"]
    assert [name.split()[0] for name in threads_in_eval(model)] == [
        "thread"
    ]  # b has ended: its number
    leave()


def test_holders_names_threads():
    """Who holds a module is told by thread name, also for a submodule; nobody else is named."""
    model, other = net(), net()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with evaluating(model):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold, name="validation")
    thread.start()
    entered.wait(10)
    with evaluating(model[1]):
        assert threads_in_eval(model[1]) == ["validation", threading.current_thread().name]
        assert threads_in_eval(model) == ["validation"]
        assert threads_in_eval(other) == []
    leave.set()
    thread.join()
    assert threads_in_eval(model) == []


def test_no_prediction_in_train_mode_with_many_threads():
    """Eight threads evaluating one training module, whole or in part, never see a train flag."""
    model = nn.Sequential(LoRA(), nn.Sequential(nn.Dropout(0.5), LoRA()), nn.BatchNorm1d(3).eval())
    before = flags(model)
    x = torch.ones(2, 3)
    with evaluating(model), torch.no_grad():
        whole, part = model(x), model[1](x)
    jobs = [(model, whole), (model[1], part)] * 4
    start = threading.Barrier(len(jobs))

    def predict(job):
        module, wanted = job
        start.wait()
        wrong = 0
        for _ in range(300):
            with evaluating(module), torch.no_grad():
                wrong += any(flags(module)) or not torch.allclose(module(x), wanted)
        return wrong

    with ThreadPoolExecutor(len(jobs)) as pool:
        assert sum(pool.map(predict, jobs)) == 0
    assert flags(model) == before
    assert not model[0].merged


def test_a_scope_waits_for_another_threads_override():
    """A scope opens only when the flip that another thread is in the middle of is complete."""
    flipping, go_on = threading.Event(), threading.Event()

    class Slow(nn.Dropout):
        def train(self, mode=True):
            flipping.set()
            go_on.wait(0.2)
            return super().train(mode)

    model = nn.Sequential(Slow(), nn.Dropout())
    seen = []

    def hold():
        with evaluating(model):
            seen.append(flags(model))

    first, second = threading.Thread(target=hold), threading.Thread(target=hold)
    first.start()
    flipping.wait(10)
    second.start()
    first.join()
    second.join()
    assert not any(flag for found in seen for flag in found)
    assert len(seen) == 2


# Overrides of train()


def test_overrides_are_called_both_ways():
    """A module that overrides train() is told eval, then its own flag."""
    model = nn.Sequential(Told(nn.Dropout()), nn.Dropout())
    with evaluating(model):
        assert model[0].calls == [False]
    assert model[0].calls == [False, True]


def test_an_override_on_the_instance_is_called():
    """A train() that is set on the object counts as an override."""
    layer, calls = nn.Dropout(), []
    layer.train = lambda mode=True: (calls.append(mode), nn.Dropout.train(layer, mode))
    with evaluating(nn.Sequential(layer)):
        assert not layer.training
    assert calls == [False, True]


def test_overrides_are_called_outermost_first():
    """The outer override comes before the inner, also where a second parent is nearer."""
    order = []

    class Ordered(Told):
        def train(self, mode=True):
            order.append((self.name, mode))
            self.training = mode  # without the children: each call is this library's
            return self

    inner = Ordered()
    outer = Ordered(nn.Sequential(inner))
    inner.name, outer.name = "inner", "outer"
    with evaluating(nn.Sequential(inner, outer)):
        pass
    assert order == [("outer", False), ("inner", False), ("outer", True), ("inner", True)]


def test_the_last_call_carries_the_modules_own_flag():
    """An override that was in eval before is told so last, after its parent passed on train."""
    frozen = Told(nn.Dropout()).eval()
    other = Told()
    model = Told(frozen, other)
    frozen.calls.clear()
    with evaluating(model):
        pass
    assert (model.calls[-1], frozen.calls[-1], other.calls[-1]) == (True, False, True)
    assert not any(flags(frozen))


def test_an_override_in_eval_is_left_alone():
    """Below a plain parent, an override that is in eval already is not called."""
    frozen = Told().eval()
    frozen.calls.clear()
    with evaluating(nn.Sequential(frozen, nn.Dropout())):
        pass
    assert frozen.calls == []


def test_an_override_that_was_told_is_told_back():
    """Also where the block has already written the flag by hand."""
    model = Told()
    with evaluating(model):
        model.training = True
    assert model.calls == [False, True]


def test_an_override_is_told_back_after_train_inside():
    """Also in the all-eval case: a train() in the block is undone by the override itself."""
    model = nn.Sequential(LoRA(), Told()).eval()
    model[1].calls.clear()
    with evaluating(model):
        model.train()
        assert not model[0].merged
    assert model[0].merged
    assert model[1].calls == [True, False]


def test_lora_is_merged_inside_only():
    """A layer that merges in eval mode predicts merged and trains apart."""
    model = nn.Sequential(LoRA(), nn.Dropout(0.5))
    weight = model[0].weight.detach().clone()
    with evaluating(model):
        assert model[0].merged
    assert not model[0].merged
    assert torch.allclose(model[0].weight, weight, atol=1e-6)


def test_backbone_with_frozen_batch_norm():
    """Each flag comes back, also one that the override would have set otherwise."""
    model = nn.Sequential(Backbone(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()), nn.Dropout())
    model.train()
    model[0][2].eval()
    before = flags(model)
    with evaluating(model):
        assert not any(flags(model))
    assert flags(model) == before
    model[0][1].train()
    with evaluating(model):
        pass
    assert model[0][1].training


def test_an_override_cannot_keep_train_mode():
    """Every submodule is in eval inside, also where train() is disabled or asks otherwise."""
    frozen = nn.Dropout()
    frozen.train = lambda mode=True: frozen
    with evaluating(frozen):
        assert not frozen.training
    assert frozen.training


def test_an_override_does_not_take_away_what_another_scope_holds():
    """An outer override waits for the scope on its submodule, and so is never told too early."""
    inner = nn.Dropout()
    model = nn.Sequential(Told(nn.Sequential(inner), nn.Dropout()), nn.Dropout())
    whole, part = evaluating(model), evaluating(inner)
    whole.__enter__()
    part.__enter__()
    whole.__exit__(None, None, None)
    assert model.training
    assert model[1].training
    assert not any(flags(model[0]))
    assert model[0].calls == [False]
    assert threads_in_eval(model[0]) == [threading.current_thread().name]
    part.__exit__(None, None, None)
    assert all(flags(model))
    assert model[0].calls == [False, True]


def test_an_override_waits_for_two_scopes_with_all_below_it():
    """What an override will set again when it is called at last stays held until then."""
    inner, frozen = nn.Dropout(), nn.BatchNorm1d(2).eval()
    model = Told(inner, frozen)
    model.training = inner.training = True
    whole, first, second = evaluating(model), evaluating(inner), evaluating(frozen)
    for scope in (whole, first, second):
        scope.__enter__()
    for scope in (whole, second, first):
        scope.__exit__(None, None, None)
    assert flags(model) == [True, True, False]


def test_an_override_may_use_evaluating():
    """The lock is reentrant: an override opens a scope of its own, in both directions."""

    class Calibrating(nn.Sequential):
        def train(self, mode=True):
            with evaluating(self[0]):
                assert not self[0].training
            return super().train(mode)

    model = Calibrating(nn.Dropout())
    with evaluating(model):
        assert not any(flags(model))
    assert all(flags(model))


def test_an_override_that_fails_on_entry():
    """Its exception comes out of the entry, nothing is held, and all flags are as before."""
    first, bad = Told(nn.Dropout()), Told()
    model = nn.Sequential(first, bad, net())
    before = flags(model)

    def fail_in_eval(mode=True):
        if not mode:
            raise OSError
        return nn.Module.train(bad, mode)

    bad.train = fail_in_eval
    scope = evaluating(model)
    with pytest.raises(OSError), scope:  # noqa: PT011 (an OSError without a text is raised above)
        pytest.fail("the block must not run")
    assert flags(model) == before
    assert first.calls == [False, True]
    assert not threads_in_eval(model)
    with pytest.raises(RuntimeError, match="entered"):
        scope.__exit__(None, None, None)


def test_an_override_that_fails_on_exit():
    """Its exception comes out, after every other override was called and every flag is back."""
    bad, good = Told(), Told()
    model = nn.Sequential(bad, good, net())
    before = flags(model)
    with pytest.raises(RuntimeError, match=r"cannot train\(True\)"), evaluating(model):
        bad.fails = True
    assert flags(model) == before
    assert good.calls == [False, True]


def test_a_flag_that_cannot_be_read_fails_on_entry():
    """Whatever fails on entry leaves no module in eval mode."""

    class Broken(nn.Identity):
        @property
        def training(self):
            msg = "no flag today"
            raise OSError(msg)

        @training.setter
        def training(self, mode):
            pass

    model = net().append(Broken())
    with pytest.raises(OSError, match="no flag today"), evaluating(model):
        pytest.fail("the block must not run")
    assert model.training
    assert model[2].training


# Kinds of modules


@pytest.mark.parametrize(
    "make",
    [
        torch.jit.script,
        lambda model: torch.jit.trace(model, torch.ones(2, 3), check_trace=False),
        torch.fx.symbolic_trace,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(model, device_ids=[]),
    ],
    ids=["script", "trace", "fx", "compile", "wrapper"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_modules_that_torch_makes(make):
    """Scripted, traced, compiled and wrapped modules: flags that are not in ``__dict__`` too."""
    model = make(net())
    before = flags(model)
    attributes = [list(part.__dict__) for part in model.modules()]
    assert any(before)
    with evaluating(model):
        assert not any(flags(model))
    assert flags(model) == before
    assert [list(part.__dict__) for part in model.modules()] == attributes


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        torch.jit.freeze,
        torch.jit.optimize_for_inference,
        lambda part: torch.jit.freeze(part.eval()),
    ],
    ids=["frozen", "optimized", "frozen again"],
)
def test_a_frozen_script_module_has_no_flag(make):
    """What torch.jit.freeze has made has no ``training``: it is left as it is, alone or as a part."""
    frozen = make(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()))
    assert not hasattr(frozen, "training")
    model = nn.Sequential(nn.Dropout(0.5), frozen)
    with evaluating(frozen), evaluating(model):
        assert not model.training
        assert not model[0].training
        assert torch.equal(model(torch.ones(2, 3)), frozen(torch.ones(2, 3)))
    assert model.training
    assert model[0].training
    assert not hasattr(frozen, "training")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_module_sees_the_flags():
    """The flag reaches the scripted code: dropout acts outside and not inside."""
    model = torch.jit.script(nn.Sequential(nn.Dropout(0.5)))
    x = torch.ones(1000)
    with evaluating(model):
        assert torch.equal(model(x), x)
    assert not torch.equal(model(x), x)


def test_a_compiled_wrapper_has_no_flag_of_its_own():
    """Closing a scope on the wrapper leaves the module alone that another scope holds."""
    model = net()
    compiled = torch.compile(model, backend="eager")
    outer, inner = evaluating(compiled), evaluating(model)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert not any(flags(model))
    assert threads_in_eval(compiled) == threads_in_eval(model) == [threading.current_thread().name]
    inner.__exit__(None, None, None)
    assert flags(model) == flags(net())


def test_a_compiled_module_sees_the_flags():
    """Dynamo's guards notice the flags: dropout acts outside and not inside."""
    torch._dynamo.reset()
    model = torch.compile(nn.Dropout(0.5), backend="eager", fullgraph=True)
    x = torch.ones(1000)
    assert not torch.equal(model(x), x)
    with evaluating(model):
        assert torch.equal(model(x), x)
    assert not torch.equal(model(x), x)


# As a decorator


def test_gives_back_what_it_was_given():
    """``as`` names the module, or the tuple of several; also of a wrapper of torch.compile."""
    one, two = net(), net()
    with evaluating(one) as given:
        assert given is one
    with evaluating(one, two) as given:
        assert given == (one, two)


def test_decorates_a_function():
    """The flags are eval for each call, and come back after it, also after an exception."""
    model = net()

    @evaluating(model, model[1])
    def predict(fails=False):
        """Predict."""
        if fails:
            raise KeyError(flags(model))
        return flags(model)

    assert not any(predict())
    assert flags(model) == flags(net())
    with pytest.raises(KeyError) as caught:
        predict(fails=True)
    assert not any(caught.value.args[0])
    assert flags(model) == flags(net())
    assert predict.__doc__ == "Predict."


def test_decorates_a_generator():
    """The flags go back at each yield, and come again on resume; close() reaches the body in eval."""
    model = net()
    ends = []

    @evaluating(model)
    def stream():
        try:
            while True:
                yield flags(model)
        finally:
            ends.append(flags(model))

    assert inspect.isgeneratorfunction(stream)
    made = stream()
    for _ in range(2):
        assert not any(next(made))
        assert flags(model) == flags(net())
    made.close()
    assert not any(ends[0])
    assert flags(model) == flags(net())


def test_decorates_async_functions_and_generators():
    """Whoever runs while the body waits, or consumes it, sees the module's own flags."""
    model = net()

    @evaluating(model)
    async def predict():
        await asyncio.sleep(0)
        return flags(model)

    @evaluating(model)
    async def stream():
        for _ in range(2):
            await asyncio.sleep(0)
            yield flags(model)

    async def main():
        task = asyncio.create_task(predict())
        await asyncio.sleep(0)
        assert flags(model) == flags(net())
        assert not any(await task)
        async for inside in stream():
            assert not any(inside)
            assert flags(model) == flags(net())

    assert inspect.iscoroutinefunction(predict)
    assert inspect.isasyncgenfunction(stream)
    asyncio.run(main())
    assert flags(model) == flags(net())


def test_an_override_that_fails_on_resume():
    """What a module's train() raises on resume comes out of the step; the flags are its own."""
    model = Told(nn.Dropout())

    @evaluating(model)
    def stream():
        yield
        yield

    made = stream()
    next(made)
    model.fails = True
    with pytest.raises(RuntimeError, match="cannot train"):
        next(made)
    assert all(flags(model))
    model.fails = False
    assert next(made, "ended") == "ended"


def test_what_cannot_be_decorated():
    """A class is refused, and the decorator is named as the user wrote it."""
    with pytest.raises(TypeError, match=r"evaluating\(Sequential\) cannot decorate the class Told"):
        evaluating(net())(Told)


# What a module keeps


def test_no_module_is_kept_alive():
    """Once no scope is open, nothing here refers to a module."""
    model = nn.Sequential(Told(nn.Dropout()), nn.Dropout())
    with evaluating(model), evaluating(model[0]):
        pass
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_nothing_but_the_flag_is_written():
    """The attributes of an evaluated module, and their order, are those from before."""
    model = net()
    before = [dict(part.__dict__) for part in model.modules()]
    with evaluating(model):
        during = [list(part.__dict__) for part in model.modules()]
    assert [dict(part.__dict__) for part in model.modules()] == before
    assert during == [list(names) for names in before]


@pytest.mark.parametrize("inside", [False, True])
def test_copies_and_files(inside):
    """deepcopy, pickle, torch.save and state_dict of an evaluated module are as ever."""
    model = net()
    with evaluating(model):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))] if inside else []  # noqa: S301 (its own bytes)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    after = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]  # noqa: S301 (as above)
    assert not any(flags(*copies))
    assert all(flags(made) == flags(net()) for made in after)
    assert list(model.state_dict()) == list(net().state_dict())


def test_a_scope_may_be_an_attribute_of_its_module():
    """It is copied and pickled with the module, for the copy, and is not open there."""
    model = net()
    model.eval_scope = evaluating(model)
    with model.eval_scope:
        twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="entered"):
        twin.eval_scope.__exit__(None, None, None)
    twin.train()
    with twin.eval_scope:
        assert not any(flags(twin))
        assert model.training
    assert all(flags(twin))
    assert pickle.loads(pickle.dumps(model)).eval_scope._scopes == {}  # noqa: S301 (its own bytes)


# Bad input


def test_no_module():
    """``evaluating()`` says that a module is missing and how to pass some."""
    with pytest.raises(TypeError) as caught:
        evaluating()
    assert "evaluating() was given no module to put in eval mode" in str(caught.value)
    assert "takes torch.nn.Module objects, one argument each" in str(caught.value)


class Holder:
    model = None


@pytest.mark.parametrize(
    ("value", "named", "remedy"),
    [
        (3, "argument 2 is 3, of type int", "evaluating(holder.model)"),
        ([nn.Identity()], "argument 2 is [Identity()], of type list", "evaluating(*modules)"),
        (nn.Identity, "of type type", "pass an instance, evaluating(Identity(...))"),
        (len, "of type builtin_function_or_method", "@evaluating(model)"),
        (Holder(), "of type Holder", "evaluating(holder.model)"),
    ],
)
def test_not_a_module(value, named, remedy):
    """The message names the value, what is accepted, and the likely remedy."""
    with pytest.raises(TypeError) as caught:
        evaluating(nn.Identity(), value)
    text = str(caught.value)
    assert named in text
    assert "takes torch.nn.Module objects, one argument each" in text
    assert remedy in text


def test_exit_without_entry():
    """An exit too many is a RuntimeError that names the modules; no flag changes."""
    model = net()
    scope = evaluating(model, model[0])
    with scope:
        pass
    with pytest.raises(RuntimeError) as caught:
        scope.__exit__(None, None, None)
    assert "evaluating(Sequential, Linear) was exited more often" in str(caught.value)
    assert "no flag was changed" in str(caught.value)
    assert "with evaluating(...)" in str(caught.value)
    assert flags(model) == flags(net())


# Whatever the tree and the order

KINDS = [nn.Sequential, Told, Backbone]


@st.composite
def forests(draw):
    """Modules of any kind with any flags, each with any of the later ones as children."""
    made = []
    for _ in range(draw(st.integers(1, 7))):
        children = [m for m in made if draw(st.booleans())] if made else []
        made.append(draw(st.sampled_from(KINDS))(*children))
        if draw(st.booleans()):
            made.append(nn.BatchNorm1d(2))
    for module in made:
        module.training = draw(st.booleans())
    return made


@given(forests(), st.data())
def test_any_interleaving(made, data):
    """Whatever opens and closes where: eval inside, the flags from before at the end."""
    before = [module.training for module in made]
    opened = []

    def all_in_eval():
        return not any(flags(*(module for scope in opened for module in scope._modules)))

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two, ExitStack() as rest:
        threads = st.sampled_from([one, two])
        rest.callback(lambda: [scope.__exit__(None, None, None) for scope in opened])
        for _ in range(data.draw(st.integers(0, 6))):
            roots = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=2))
            again = opened and data.draw(st.booleans())
            scope = opened[-1] if again else evaluating(*roots)
            data.draw(threads).submit(scope.__enter__).result()
            opened.append(scope)
            assert all_in_eval()
            if data.draw(st.booleans()):
                scope._modules[0].train().eval()  # in between no flag is what it was
            while opened and data.draw(st.booleans()):
                position, thread = data.draw(st.integers(0, len(opened) - 1)), data.draw(threads)
                thread.submit(opened.pop(position).__exit__, None, None, None).result()
                assert all_in_eval()
    assert [module.training for module in made] == before
    told = [module for module in made if isinstance(module, Told) and module.calls]
    assert all(module.calls[-1] is module.training for module in told)


@given(forests(), st.data())
def test_without_overrides_each_module_is_free_once_nobody_holds_it(made, data):
    """Of plain modules, exactly those that an open scope holds are in eval mode."""
    plain = [nn.Sequential(*()) for _ in made]
    index = {id(module): plain[position] for position, module in enumerate(made)}
    for module, twin in zip(made, plain, strict=True):
        twin.training = module.training
        for name, child in module.named_children():
            twin.add_module(name, index[id(child)])
    before = [module.training for module in plain]
    opened = []
    with ExitStack() as rest:
        rest.callback(lambda: [scope.__exit__(None, None, None) for scope in opened])
        for root in data.draw(st.lists(st.sampled_from(plain), max_size=6)):
            opened.append(evaluating(root))
            opened[-1].__enter__()
            while opened and data.draw(st.booleans()):
                opened.pop(data.draw(st.integers(0, len(opened) - 1))).__exit__(None, None, None)
            held = {id(part) for scope in opened for part in scope._modules[0].modules()}
            for module, flag in zip(plain, before, strict=True):
                assert module.training is (flag and id(module) not in held)
