"""watch_training: what it finds at a step, what it leaves alone, and that it leaves no trace."""

import contextlib
import copy
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradguard
from gradguard import GradModeError, GradModeWarning, watch_training
from gradguard._watch import trained as _trained
from gradguard._watch import training as _watch_training


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


def test_a_step_without_any_gradient():
    """A step after no backward is reported before the update, with usual causes and a fix."""
    model, optimizer, _ = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GradModeError) as caught:
        optimizer.step()
    text = str(caught.value)
    assert "watch_training, at optimizer step 1: none of the 6 trainable parameters" in text
    assert "Usual causes:" in text
    assert "To do: call backward() on a loss first." in text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_parameter_without_gradient_is_named():
    """One trainable parameter without a gradient is named, the others are not."""
    model, optimizer, _ = make()
    backward(model)
    model[2].bias.grad = None
    with pytest.raises(GradModeError, match=r"No gradient \(1\):\n  2\.bias\n"):
        optimizer.step()


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
    with pytest.raises(GradModeError, match="without a gradient in 3 steps in a row"):
        optimizer.step()


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
    """Parameters, buffers and optimizer state born in inference mode are named by kind."""
    model, optimizer, _ = make()
    backward(model)
    with torch.inference_mode():
        model[1].running_mean = torch.zeros(3)
        optimizer.state[model[0].weight]["extra"] = torch.zeros(3)
        model[2].weight = nn.Parameter(torch.ones(1, 3))
    optimizer.add_param_group({"params": [model[2].weight]})
    with pytest.raises(GradModeError) as caught:
        optimizer.step()
    text = str(caught.value)
    assert "inference tensors take part in training" in text
    assert "Among the parameters (1):\n  2.weight\n" in text
    assert "Among the buffers (1):\n  1.running_mean\n" in text
    assert "Among the optimizer state (1):\n  0.weight: extra\n" in text


def test_eval_mode_of_the_model_itself():
    """A model that was in train mode and now steps in eval mode is reported with the fix."""
    model, optimizer, _ = make()
    model.eval()
    backward(model)
    with pytest.raises(
        GradModeError, match=r"Sequential is in eval mode(.|\n)*evaluating\(model\)"
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
    """A grad mode left off by a function that has returned is reported."""
    model, optimizer, watch = make(on_violation=(found := []).append)
    backward(model)
    leave_grad_off()
    try:
        optimizer.step()
    finally:
        torch.set_grad_enabled(True)
    assert "the mode was left switched: it was grad on" in str(found[0])
    assert "is grad off" in str(found[0])
    assert "python -m gradguard run" in str(found[0])
    assert "steps with the mode left switched: 1" in watch.report()


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
    with pytest.raises(GradModeError, match="none of the 2 trainable parameters"):
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
    with pytest.raises(GradModeError, match=r"\n  3\.weight\n"):
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
    watch_training(model, wrapped)
    with pytest.raises(GradModeError):
        wrapped.step()


def test_warnings_point_at_the_line_of_the_step():
    """With "warn" the warning's file is this one, and training goes on."""
    model, optimizer, watch = make(on_violation="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert [warning.category for warning in caught] == [GradModeWarning]
    assert caught[0].filename == __file__
    assert "steps without any gradient: 1" in watch.report()
    del model


def test_remove_leaves_no_hook():
    """After remove(), twice, no hook is left on model, optimizer or torch's global tables."""
    model, optimizer, watch = make()
    tables = [
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks,
        torch.nn.modules.module._global_forward_hooks,
        *(module._forward_hooks for module in model.modules()),
    ]
    assert sum(map(len, tables)) == 2
    watch.remove()
    watch.remove()
    assert sum(map(len, tables)) == 0
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


def test_several_findings_come_in_one_error():
    """All that is wrong with a step is said at once."""
    model, optimizer, watch = make(on_violation=(found := []).append)
    model.eval()
    optimizer.step()
    assert len(found) == 1
    assert "none of the 6" in str(found[0])
    assert "eval mode" in str(found[0])
    assert "steps in eval mode: 1" in watch.report()


def test_a_layer_replaced_after_the_optimizer_was_made():
    """Parameters that the optimizer holds and the model has no longer are named as such."""
    model, optimizer, watch = make(on_violation=(found := []).append)
    model[2] = nn.Linear(3, 1)
    for _ in range(2):
        step(model, optimizer)
    assert "holds parameters that are the model's no longer" in str(found[0])
    assert "2.weight" in str(found[0])
    assert len(found) == 2
    assert "steps with parameters that are not the model's: 2" in watch.report()


def test_the_same_line_under_another_guard_is_looked_at_again():
    """A line that was harmless under a guard held in a variable is judged anew without it."""
    model, optimizer, _ = make()
    backward(model)
    try:
        with pytest.raises(GradModeError, match="left switched"):
            for guard in (torch.no_grad(), contextlib.nullcontext()):
                if isinstance(guard, contextlib.nullcontext):
                    leave_grad_off()
                with guard:
                    optimizer.step()
    finally:
        torch.set_grad_enabled(True)


def test_no_step_is_said():
    """A watch that saw no step says so, rather than that nothing was found."""
    assert "no optimizer step was seen" in make()[2].report()


def test_a_lazy_layer_that_is_born_while_it_is_watched():
    """A lazy parameter that inference mode has made since the watch began is found at the step."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_training(model, optimizer):
        with torch.inference_mode():
            model(torch.ones(1, 2))
        backward(model)
        with pytest.raises(GradModeError, match=r"inference tensors(.|\n)*\n  0\.weight\n"):
            optimizer.step()


def test_a_harmless_place_is_looked_at_once(monkeypatch):
    """A loop that steps inside no_grad does not search the stack at each step."""
    model, optimizer, _ = make()
    searches = []
    search = _watch_training.enclosing
    monkeypatch.setattr(
        _watch_training, "enclosing", lambda: (searches.append(1), search(sys._getframe(1)))[1]
    )
    for _ in range(5):
        backward(model)
        with torch.no_grad():
            optimizer.step()
    assert len(searches) == 1


def test_a_buffer_of_a_module_added_later_is_found_in_time(monkeypatch):
    """Modules added since the watch began are looked for again every so many steps."""
    monkeypatch.setattr(_trained, "_REFRESH", 3)
    model, optimizer, watch = make()
    with torch.inference_mode():
        late = torch.zeros(1)
    model[2].register_module("late", nn.Module())
    model[2].late.register_buffer("mean", late)
    step(model, optimizer)
    step(model, optimizer)
    with pytest.raises(GradModeError, match=r"Among the buffers \(1\):\n  2\.late\.mean\n"):
        step(model, optimizer)
    assert watch.steps == 3


def test_a_compiled_step_is_one_graph_and_not_seen():
    """The hooks return at once while Dynamo compiles a step.

    On Python 3.14 Dynamo gives up at a graph break that torch.optim itself makes, and the hooks run
    uncompiled: such a step is seen.
    """
    torch._dynamo.reset()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watch_training(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    torch.compile(optimizer.step, backend="eager")()
    assert watch.steps == (1 if sys.version_info >= (3, 14) else 0)
