"""watch_training: what it finds at a step, what it leaves alone, and that it leaves no trace."""

import contextlib
import copy
import gc
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradguard
from gradguard import GradModeError, GradModeWarning, watch_training
from gradguard._watch import left_mode as _left
from gradguard._watch import registrations as _registrations


def make(**options):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, watch_training(model, optimizer, **options)


def backward(model, scale=1.0):
    (model(torch.randn(4, 2)).sum() * scale).backward()


def step(model, optimizer):
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def test_healthy_steps_are_silent():
    """Ordinary training finds nothing, and the report says how many steps were seen."""
    model, optimizer, watch = make()
    for _ in range(3):
        step(model, optimizer)
    assert watch.steps == 3
    assert watch.report() == "watch_training: 3 optimizer steps, nothing found"


def test_steps_whose_gradients_were_dropped():
    """zero_grad between backward and step is found at the second such step, before the update."""
    model, optimizer, watch = make()
    with pytest.raises(GradModeError) as caught:
        for _ in range(3):
            backward(model)
            before = copy.deepcopy(list(model.parameters()))
            optimizer.zero_grad()
            optimizer.step()
    text = str(caught.value)
    assert text.startswith("watch_training, at optimizer step 1: A step of AdamW in which none of")
    assert "none of its 6 trainable parameters has a gradient" in text
    assert "zero_grad() was called between backward() and step()" in text
    assert "To do: call zero_grad() before backward()" in text
    assert caught.value.finding.kind == "empty-step"
    assert watch.steps == 2
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_steps_without_a_backward():
    """Steps with no backward before are found at the fourth in a row."""
    model, optimizer, watch = make()
    with pytest.raises(GradModeError, match=r"No backward\(\) came before it"):
        for _ in range(6):
            model(torch.randn(4, 2))
            optimizer.step()
    assert watch.steps == watch.findings[0].count == 4


def test_a_first_step_for_a_scheduler():
    """A step before the first forward, for a scheduler, is no finding."""
    model, optimizer, watch = make()
    optimizer.step()
    step(model, optimizer)
    assert watch.findings == []


def test_a_parameter_without_gradient_is_named():
    """One trainable parameter without a gradient is named, the others are not."""
    model, optimizer, _ = make()
    backward(model)
    model[2].bias.grad = None
    with pytest.raises(GradModeError, match=r"Parameters:\n  2\.bias$") as caught:
        optimizer.step()
    assert caught.value.finding.parameters == ("2.bias",)


def test_patience_counts_steps_in_a_row():
    """With patience=3 only the third step in a row is reported, and a gradient starts anew."""
    model, optimizer, _ = make(patience=3)
    for missing in (True, True, False, True, True):
        optimizer.zero_grad()
        backward(model)
        if missing:
            model[2].bias.grad = None
        optimizer.step()
    backward(model)
    model[2].bias.grad = None
    with pytest.raises(GradModeError, match=r"never had a gradient in 3 steps(.|\n)*  2\.bias"):
        optimizer.step()


class Experts(nn.Module):
    """A model of which one part after the other is used; `cut` takes a part out of the graph."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(2, 1) for _ in range(3))
        self.used, self.cut = (0,), False

    def forward(self, given):
        outputs = [self.parts[at](given) for at in self.used]
        return sum(out.detach() if self.cut and at else out for at, out in enumerate(outputs))


def test_a_part_that_does_not_run_needs_no_gradient():
    """Experts, heads in turn and dropped layers need none in a step that does not use them."""
    model = Experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_training(model, optimizer)
    for used in [(0,), (1, 2), (0, 1), (2,), (0, 1, 2), (1,), (0,)]:
        model.used = used
        with torch.no_grad():
            model(torch.randn(4, 2))
        step(model, optimizer)
    assert watch.findings == []


def test_a_part_that_is_cut_off_later_is_named():
    """One that ran and had gradients before is named when it runs and has none."""
    model = Experts()
    model.used = (0, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch_training(model, optimizer)
    step(model, optimizer)
    model.cut = True
    with pytest.raises(GradModeError, match=r"parts\.1\.weight"):
        for _ in range(2):
            step(model, optimizer)


def test_each_optimizer_has_a_row_of_its_own():
    """The step of another optimizer ends no row of steps without a gradient."""
    model = Experts()
    model.used, model.cut = (0, 1), True
    optimizers = tuple(torch.optim.SGD(part.parameters(), lr=0.1) for part in model.parts[:2])
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_training(model, (both, *optimizers), patience=2, on_violation=lambda error: None)
    for _ in range(2):
        backward(model)
        both.step()
        optimizers[0].step()
        both.zero_grad()
    assert [one.kind for one in watch.findings] == ["no-gradient"]


def test_allow_frozen_and_empty_parameters_need_no_gradient():
    """Allowed, frozen and empty parameters are left out."""
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1), "c": nn.Linear(2, 1)})
    model.empty = nn.Parameter(torch.empty(0))
    model["c"].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch_training(model, optimizer, allow=["b.*"])
    model["a"](torch.ones(1, 2)).sum().backward()
    optimizer.step()


def inference_linear():
    with torch.inference_mode():
        return nn.Linear(2, 1)


def test_inference_tensors_are_named():
    """Parameters, buffers and optimizer state created in inference mode are named by kind."""
    found = []
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with torch.inference_mode():
        model[2].weight = nn.Parameter(torch.ones(1, 3))
        model[1].running_mean = torch.zeros(3)
        optimizer.state[model[0].weight]["extra"] = torch.zeros(3)
    optimizer.add_param_group({"params": [model[2].weight]})
    watch = watch_training(model, optimizer, on_violation=found.append)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        model(torch.randn(4, 2))
    model[0].weight.grad = torch.zeros(3, 2)
    with pytest.raises(KeyError):
        optimizer.step()
    assert "Inference tensors among the parameters" in str(found[0])
    named = {name for one in watch.findings for name in one.parameters}
    assert {"2.weight", "1.running_mean"} <= named
    assert any("optimizer state" in str(one) for one in found)


def test_eval_mode_of_the_model_itself():
    """A model that was in train mode and now steps in eval mode is reported with the fix."""
    model, optimizer, _ = make()
    model.eval()
    backward(model)
    with pytest.raises(
        GradModeError, match=r"Sequential was left in eval mode(.|\n)*evaluating\(model\)"
    ):
        optimizer.step()


def test_eval_mode_is_fine_when_it_was_so_or_for_a_submodule():
    """Fine-tuning in eval mode from the start, and a frozen BatchNorm, are no findings."""
    model, optimizer, _ = make()
    model[1].eval()
    step(model, optimizer)
    model, optimizer, watch = make()
    watch.remove()
    model.eval()
    with watch_training(model, optimizer):
        step(model, optimizer)


def leave_grad_off():
    torch.set_grad_enabled(False)


def test_a_mode_that_was_left_is_reported():
    """A grad mode left off by a function that has returned is found at the next train forward."""
    model, optimizer, watch = make(on_violation=(found := []).append)
    step(model, optimizer)
    leave_grad_off()
    try:
        model(torch.randn(4, 2))
        model(torch.randn(4, 2))
    finally:
        torch.set_grad_enabled(True)
    assert len(found) == 2, "once for each line"
    assert "Grad mode was left off, and training went on in it" in str(found[0])
    assert "gradguard run SCRIPT" in str(found[0])
    assert {one.kind for one in watch.findings} == {"mode-leak"}


class Quiet(contextlib.ContextDecorator):
    """A user's own context manager, which brings back what it found."""

    def __enter__(self):
        self.was = torch.is_grad_enabled()
        leave_grad_off()

    def __exit__(self, *exc):
        torch.set_grad_enabled(self.was)


class Evaluation:
    """One that holds another."""

    def __init__(self):
        self.scope = Quiet()

    @contextlib.contextmanager
    def paused(self):
        with self.scope:
            yield


@contextlib.contextmanager
def paused():
    was = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(was)


@pytest.mark.parametrize(
    "scope",
    [Quiet, lambda: Evaluation().scope, lambda: Evaluation().paused(), paused],
    ids=["class", "attribute", "method", "function"],
)
@pytest.mark.parametrize("entered", ["with", "made before", "decorator", "stack"])
def test_a_scope_of_the_users_own_is_no_left_mode(scope, entered):
    """A mode that a user's own context manager has made is its block's, however it is entered."""
    model, optimizer, watch = make()
    for _ in range(2):
        step(model, optimizer)
        manager = scope()
        if entered == "with":
            with scope():
                model(torch.randn(4, 2))
        elif entered == "made before":
            with manager:
                model(torch.randn(4, 2))
        elif entered == "decorator":
            manager(model)(torch.randn(4, 2))
        else:
            with contextlib.ExitStack() as stack:
                stack.enter_context(manager)
                model(torch.randn(4, 2))
    assert watch.findings == []


class Autograd:
    """Switches by two methods, the second of which takes back what the first did."""

    def pause(self):
        self.was = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def resume(self):
        torch.set_grad_enabled(self.was)


def test_a_line_between_two_switching_calls_is_no_left_mode():
    """What one method has switched off is not left where the next lines call one that undoes it."""
    model, optimizer, watch = make()
    autograd = Autograd()
    for _ in range(2):
        step(model, optimizer)
        autograd.pause()
        model(torch.randn(4, 2))
        autograd.resume()
        autograd.pause()
        try:
            for _ in range(2):
                model(torch.randn(4, 2))
        finally:
            autograd.resume()
    assert watch.findings == []


def test_the_same_call_again_takes_nothing_back():
    """A mode is left where the only switching call that follows is that of the next round."""
    model, optimizer, watch = make(on_violation=lambda error: None)
    autograd = Autograd()
    try:
        for _ in range(2):
            autograd.pause()
            model(torch.randn(4, 2))
            autograd.pause()
    finally:
        torch.set_grad_enabled(True)
    assert [one.kind for one in watch.findings] == ["mode-leak"]
    optimizer.step()


class Timer:
    """A context manager that has nothing to do with modes."""

    def __enter__(self):
        self.entered = True

    def __exit__(self, *exc):
        self.entered = False


@contextlib.contextmanager
def timed():
    yield


@pytest.mark.parametrize("scope", [Timer, timed])
def test_a_scope_that_cannot_switch_explains_nothing(scope):
    """A mode left inside a block whose manager mentions no guard is left all the same."""
    model, optimizer, _ = make()
    with scope():
        step(model, optimizer)
        leave_grad_off()
        try:
            with pytest.raises(GradModeError, match="Grad mode was left off"):
                model(torch.randn(4, 2))
        finally:
            torch.set_grad_enabled(True)


def test_a_traced_switch_is_named():
    """Under a trace the finding's line is that of the switch."""
    model, optimizer, watch = make(on_violation="warn")
    step(model, optimizer)
    with gradguard.trace():
        leave_grad_off()
        try:
            with pytest.warns(GradModeWarning, match="This line switched it"):
                model(torch.randn(4, 2))
        finally:
            torch.set_grad_enabled(True)
    assert watch.findings[0].function == "leave_grad_off"


@pytest.mark.parametrize("made", [lambda: torch.no_grad(), {"off": torch.no_grad}.__getitem__])
def test_a_guard_that_cannot_be_read_counts_as_open(made):
    """A forward inside a `with` whose guard no reader of the source can name is harmless."""
    model, optimizer, watch = make()
    step(model, optimizer)
    with made("off")() if isinstance(made, type({}.get)) else made():
        model(torch.randn(4, 2))
    assert watch.findings == []


@pytest.mark.parametrize(
    "guard",
    [torch.no_grad, torch.inference_mode, gradguard.no_grad, gradguard.inference_mode],
)
@pytest.mark.parametrize("form", ["with", "decorator"])
def test_a_step_inside_an_open_guard_is_harmless(guard, form):
    """A step inside a `with` or a decorated function that is still open is not reported."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_training(model, optimizer):
        for _ in range(2):
            backward(model)
            if form == "with":
                with guard():
                    optimizer.step()
            else:
                guard()(optimizer.step)()


def test_a_step_inside_backward_is_harmless():
    """An optimizer that steps in a hook of backward, where grad is off, is not reported."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_training(model, optimizer, allow=["*"])
    model.bias.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    backward(model)
    assert watch.steps == 1


def test_rollouts_and_validation_between_steps_are_harmless():
    """no_grad rollouts, eval-mode validation and a reentrant checkpoint are normal."""
    model, optimizer, _ = make()
    for _ in range(2):
        with torch.no_grad():
            model(torch.randn(4, 2))
        with gradguard.evaluating(model), torch.inference_mode():
            model(torch.randn(4, 2))
        optimizer.zero_grad()
        inputs = torch.randn(4, 2, requires_grad=True)
        checkpoint(model, inputs, use_reentrant=True).sum().backward()
        optimizer.step()


def test_gradient_accumulation_and_scaler_skips():
    """Several backwards a step, and steps that a GradScaler skips, are no findings."""
    model, optimizer, watch = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for scale in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        for _ in range(2):
            scaler.scale(model(torch.randn(4, 2)).sum() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
    assert watch.steps == 2


def test_a_closure_is_judged_after_it():
    """LBFGS makes its gradients inside step(closure): the checks run after it."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    watch = watch_training(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 2)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert watch.steps == 1
    with pytest.raises(GradModeError, match="none of its 2 trainable parameters"):
        optimizer.step(lambda: torch.ones(()) + 0 * bool(optimizer.zero_grad()))


def test_several_optimizers_judge_their_own_parameters():
    """Each watch looks at the parameters of its own optimizer, as in a GAN."""
    model = nn.ModuleDict({"g": nn.Linear(2, 2), "d": nn.Linear(2, 1)})
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}
    watches = [watch_training(model, optimizer) for optimizer in optimizers.values()]
    for name, optimizer in optimizers.items():
        model[name](torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert [watch.steps for watch in watches] == [1, 1]


def test_groups_and_modules_added_later_are_watched():
    """A parameter group that is added after the watch began is judged, under its name."""
    model, optimizer, _ = make()
    model.append(nn.Linear(1, 1))
    optimizer.add_param_group({"params": model[3].parameters()})
    backward(model)
    model[3].weight.grad = None
    with pytest.raises(GradModeError, match=r"\n  3\.weight$"):
        optimizer.step()


class Wrapper(nn.Module):
    """A DistributedDataParallel-like wrapper."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel])
def test_wrapped_models(wrap):
    """A parallel wrapper may be watched: names are those of its named_parameters()."""
    inner = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    watch_training(wrap(inner), optimizer)
    backward(inner)
    optimizer.step()
    inner.bias.grad = None
    with pytest.raises(GradModeError, match=r"module\.bias"):
        optimizer.step()


def test_a_compiled_model():
    """A torch.compile'd model trains without a finding and in one graph."""
    torch._dynamo.reset()
    model = torch.compile(nn.Linear(2, 1), fullgraph=True, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_training(model, optimizer)
    for _ in range(2):
        step(model, optimizer)
    assert watch.report() == "watch_training: 2 optimizer steps, nothing found"


def test_a_wrapped_optimizer():
    """accelerate and Lightning wrap the optimizer as `.optimizer`: the inner one is watched."""

    class Wrapped:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.step()

    model = nn.Linear(2, 1)
    wrapped = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))
    watch = watch_training(model, wrapped)
    backward(model)
    wrapped.step()
    assert watch.steps == 1


def test_warnings_point_at_the_line_of_the_step():
    """With "warn" the warning's file is this one, and training goes on."""
    model, optimizer, watch = make(on_violation="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            backward(model)
            model[2].bias.grad = None
            optimizer.step()
    assert {warning.category for warning in caught} == {GradModeWarning}
    assert caught[0].filename == __file__
    assert f"no-gradient at {__file__}" in watch.report()
    assert watch.report().startswith("watch_training: 3 optimizer steps\n")


@pytest.fixture
def only_watch(monkeypatch):
    """Let a test's watches be the only ones: their shared hooks go with the last of them."""
    monkeypatch.setattr(_registrations, "_feeders", {})
    monkeypatch.setattr(_registrations, "_handles", [])


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, given):
        return self.last(self.first(given))


@pytest.mark.usefixtures("only_watch")
@pytest.mark.parametrize(("made", "hooks_of_modules"), [(nn.Sequential, 4), (Two, 4)])
def test_remove_leaves_no_hook(made, hooks_of_modules):
    """After remove(), twice, no hook is left on model, optimizer or torch's global tables."""
    gc.collect()
    hooks = torch.nn.modules.module
    shared = [
        sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks,
        hooks._global_forward_hooks,
        hooks._global_parameter_registration_hooks,
        hooks._global_module_registration_hooks,
    ]
    others = sum(map(len, shared))
    model = made(nn.Linear(2, 3), nn.Linear(3, 1)) if made is nn.Sequential else made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    watch = watch_training(model, optimizer)
    tables = [
        *shared,
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        *(module._forward_hooks for module in model.modules()),
        *(module._forward_pre_hooks for module in model.modules()),
    ]
    assert sum(map(len, tables)) - others == 4 + hooks_of_modules
    first, *_, last = model.parameters()
    assert all(p._post_accumulate_grad_hooks for p in (first, last))
    watch.remove()
    watch.remove()
    assert sum(map(len, tables)) == others
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"on_violation": "explode"}, ValueError, "'explode' is not one of 'raise', 'warn'"),
        ({"patience": 0}, ValueError, "patience=0 must be a whole number"),
        ({"patience": True}, ValueError, "patience=True must be a whole number"),
        ({"allow": ["decoder.*"]}, ValueError, "decoder"),
        ({"model": 3}, TypeError, "torch.nn.Module"),
        ({"model": nn.ReLU()}, ValueError, "has no parameters"),
        ({"optimizer": 3}, TypeError, "needs a torch.optim.Optimizer, got int"),
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)},
            ValueError,
            "holds none of the parameters of the Linear",
        ),
    ],
)
def test_bad_arguments_fail_at_the_call(options, error, said):
    """Each bad argument is a clear error at the call, and no hook is left behind."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"model": model, "optimizer": optimizer, **options}
    with pytest.raises(error, match=said):
        watch_training(**arguments)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_layer_replaced_after_the_optimizer_was_made():
    """Where a layer is replaced that the optimizer holds, that line is named, once."""
    model, optimizer, watch = make(on_violation=(found := []).append)
    model[2] = nn.Linear(3, 1)  # replaced
    for _ in range(2):
        step(model, optimizer)
    (error,) = found
    assert error.finding.kind == "stale-parameter"
    assert error.finding.source.endswith("# replaced")
    assert error.finding.parameters == ("2.weight", "2.bias")
    assert watch.findings[0].count == 2


def test_the_same_line_under_another_guard_is_looked_at_again():
    """A line that was harmless under a guard held in a variable is judged anew without it."""
    model, optimizer, _ = make()
    step(model, optimizer)
    try:
        with pytest.raises(GradModeError, match="Grad mode was left off"):
            for guard in (torch.no_grad(), contextlib.nullcontext()):
                if isinstance(guard, contextlib.nullcontext):
                    leave_grad_off()
                with guard:
                    model(torch.randn(4, 2))
    finally:
        torch.set_grad_enabled(True)


def test_no_step_is_said():
    """A watch that saw no step says so, and how many forwards it saw."""
    model, _, watch = make()
    assert "no optimizer step was seen" in watch.report()
    backward(model)
    assert "1 forwards and no optimizer step was seen" in watch.report()


def test_a_buffer_that_inference_mode_makes_after_many_steps():
    """The watch looks at the model again and again, some of it at each step."""
    model, optimizer, _ = make()
    for _ in range(20):
        step(model, optimizer)
    with torch.inference_mode():
        model.register_buffer("scale", torch.ones(3))
    with pytest.raises(GradModeError, match="buffers"):
        for _ in range(20):
            step(model, optimizer)


def test_a_lazy_layer_that_inference_mode_makes():
    """A lazy parameter that inference mode has made since the watch began is found, at its line."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_training(model, optimizer):
        with torch.inference_mode():
            model(torch.ones(1, 2))  # made
        with pytest.raises(
            GradModeError, match=r"Inference tensors(.|\n)*\n  0\.weight\n"
        ) as caught:
            model(torch.ones(1, 2))
    assert caught.value.finding.source.endswith("# made")


def test_a_harmless_place_is_looked_at_once(monkeypatch):
    """A loop that predicts inside no_grad does not search the stack at each forward."""
    model, optimizer, _ = make()
    searches = []
    search = _left.enclosing
    monkeypatch.setattr(_left, "enclosing", lambda frame: (searches.append(1), search(frame))[1])
    step(model, optimizer)
    for _ in range(5):
        with torch.no_grad():
            model(torch.randn(4, 2))
    assert len(searches) == 1


def test_a_second_watch_of_the_same_pair_replaces_the_first():
    """A notebook's cell that is run again leaves one watch, not two."""
    model, optimizer, first = make()
    second = watch_training(model, optimizer)
    step(model, optimizer)
    assert (first.steps, second.steps) == (0, 1)


@pytest.mark.usefixtures("only_watch")
def test_a_watch_ends_with_its_model():
    """A watch that nobody removed keeps no model alive; the next removal clears torch's tables."""
    gc.collect()
    table = torch.nn.modules.module._global_parameter_registration_hooks
    before = len(table)
    model, optimizer, _ = make()
    reference = weakref.ref(model)
    assert len(table) == before + 1
    del model, optimizer, _
    gc.collect()
    assert reference() is None
    make()[2].remove()
    assert len(table) == before


def test_a_watch_that_ends_while_a_module_is_built():
    """A dropped watch may be collected while torch goes over its hooks: building goes on."""
    collect = torch.nn.modules.module.register_module_parameter_registration_hook(
        lambda *given: (gc.collect(), None)[1]
    )
    try:
        make()  # nobody has it: the next collection ends it
        nn.Linear(2, 1)
    finally:
        collect.remove()


def test_several_models_and_optimizers():
    """A GAN is watched as a tuple of models and one of optimizers."""
    maker, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (maker, critic)]
    watch = watch_training((maker, critic), tuple(optimizers))
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
            critic(maker(torch.ones(1, 2))).sum().backward()
            optimizer.step()
    assert watch.findings == []
    assert (watch.steps, watch.forwards) == (6, 12)


def test_a_callable_that_raises_breaks_nothing(caplog):
    """What on_violation raises is logged, and so is every finding, once."""

    def broken(error):
        raise OSError(error)

    model, optimizer, _ = make(on_violation=broken)
    model[2] = nn.Linear(3, 1)
    with caplog.at_level("INFO", "gradguard"):
        for _ in range(2):
            step(model, optimizer)
    kinds = [record.finding.kind for record in caplog.records if hasattr(record, "finding")]
    assert kinds == ["stale-parameter"]
    assert sum(record.exc_info is not None for record in caplog.records) == 1


def test_what_is_frozen_and_moves():
    """A parameter frozen after backward that the step moves all the same is named."""
    model, optimizer, _ = make()
    backward(model)
    model[0].requires_grad_(False)
    with pytest.raises(GradModeError, match=r"2 frozen parameters(.|\n)*  0\.weight\n  0\.bias"):
        optimizer.step()


def test_a_compiled_step_is_one_graph_and_not_seen():
    """The hooks return at once while Dynamo compiles a step.

    From Python 3.13 on Dynamo gives up at a graph break that torch.optim itself makes, and the hooks
    run uncompiled: such a step is seen.
    """
    torch._dynamo.reset()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_training(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    torch.compile(optimizer.step, backend="eager")()
    assert watch.steps == (1 if sys.version_info >= (3, 13) else 0)


def test_a_mode_left_inside_the_watchs_own_block_is_found():
    """The block of the watch, whose source shows no guard, is not taken for what switched."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with watch_training(model, optimizer):
            step(model, optimizer)
            leave_grad_off()
            with pytest.raises(GradModeError, match="Grad mode was left off"):
                model(torch.randn(4, 2))
    finally:
        torch.set_grad_enabled(True)


def test_a_script_module_by_itself_cannot_be_watched():
    """torch runs no hooks on it; in a module of its own it can be, as the message says."""
    model = torch.jit.script(torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match="runs no forward hooks on script modules"):
        watch_training(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model = torch.nn.Sequential(model)
    with watch_training(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
        model(torch.ones(1, 2)).sum().backward()
    assert "forwards" in watch.report()


def test_what_would_be_raised_is_a_warning_at_the_end():
    """A mode left in the loop's own function, which torch's error ends: the watch still tells it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train():
        for step in range(2):
            if step:
                torch.set_grad_enabled(False)
            loss = model(torch.ones(1, 2)).sum()
            loss.backward()
            optimizer.step()

    with pytest.warns(GradModeWarning, match="Grad mode was left off") as told:
        with pytest.raises(RuntimeError, match="does not require grad"):
            with watch_training(model, optimizer):
                train()
    torch.set_grad_enabled(True)
    assert [str(one.message).count("set_grad_enabled(False)") for one in told] == [1]


def test_the_parts_of_a_sequential_that_are_called_by_hand():
    """A part that is called as model[0], and cut off, is told at the first step."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch_training(model, optimizer):
        model[1](model[0](torch.ones(1, 2)).detach()).sum().backward()
        with pytest.raises(
            GradModeError, match=r"at optimizer step 1(.|\n)*\n  0\.weight\n  0\.bias"
        ):
            optimizer.step()


def test_a_script_module_inside_a_watched_one():
    """It has no hooks: it is watched by what surrounds it, also where it is put in its place later."""
    scripted = torch.jit.script(nn.Linear(2, 2))
    model = nn.Sequential(scripted, nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch_training(model, optimizer) as watch:
        for _ in range(2):
            model[1](torch.ones(1, 2)).sum().backward()
            optimizer.step()
        model.append(torch.jit.script(nn.Linear(1, 1)))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert watch.findings == []
