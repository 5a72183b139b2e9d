"""watch_inference: forwards that record a graph or run in train mode, once per line."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradModeError, GradModeWarning, watch_inference


def test_a_recording_forward_is_told_at_its_line():
    """A forward without a guard warns at the calling line, and says what to do."""
    model = nn.Linear(2, 1).eval()
    with watch_inference(model) as watch, pytest.warns(GradModeWarning) as caught:
        model(torch.ones(1, 2))
    assert caught[0].filename == __file__
    assert "recorded a graph" in str(caught[0].message)
    assert "`with torch.inference_mode():`" in str(caught[0].message)
    assert (watch.forwards, watch.violations) == (1, 1)


def test_train_mode_is_told():
    """A forward in train mode is a violation though nothing is recorded."""
    model = nn.Dropout()
    with (
        watch_inference(model) as watch,
        pytest.warns(GradModeWarning, match=r"ran in train mode(.|\n)*model\.eval\(\)"),
    ):
        model(torch.ones(2))
    assert watch.violations == 1


def test_one_violation_a_forward():
    """A forward that records in train mode counts once, and the message says both."""
    model = nn.Linear(2, 1)
    found = []
    with watch_inference(model, on_violation=found.append) as watch:
        model(torch.ones(1, 2))
    assert (watch.forwards, watch.violations, len(found)) == (1, 1, 1)
    assert (found[0].finding.kind, found[0].finding.severity) == ("recorded-eval", "fault")


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, gradguard.inference_mode])
def test_a_guarded_forward_is_silent(guard):
    """Under any guard a module in eval mode is no violation."""
    model = nn.Linear(2, 1).eval()
    with watch_inference(model, on_violation="raise") as watch, guard():
        model(torch.ones(1, 2))
    assert watch.report() == "watch_inference: 1 forwards, 0 violations"


def test_it_warns_once_per_line():
    """A line in a loop is told once; another line is told, too; every forward is counted."""
    model = nn.Linear(2, 1).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch_inference(model) as watch:
            for _ in range(5):
                model(torch.ones(1, 2))
            model(torch.ones(1, 2))
    assert len(caught) == 2
    assert (watch.forwards, watch.violations) == (6, 6)
    assert watch.report().count(__file__) == 2


def test_raise_comes_out_of_the_forward():
    """With "raise" the forward raises GradModeError."""
    model = nn.Linear(2, 1).eval()
    with watch_inference(model, on_violation="raise"), pytest.raises(GradModeError):
        model(torch.ones(1, 2))


def test_nested_outputs_are_looked_into():
    """Tensors inside dictionaries and tuples of the output are seen."""

    class Model(nn.Module):
        def forward(self, x):
            return {"logits": (x * 2,)}

    model = Model().eval()
    with watch_inference(model, on_violation="raise"), pytest.raises(GradModeError):
        model(torch.ones(1, requires_grad=True))


def test_a_compiled_module_is_watched_from_outside():
    """Watching the compiled module sees its calls; watching what Dynamo inlines breaks no graph."""
    torch._dynamo.reset()
    inner = nn.Linear(2, 1).eval()
    compiled = torch.compile(inner, fullgraph=True, backend="eager")
    found = []
    with watch_inference(compiled, on_violation=found.append) as watch, watch_inference(inner):
        compiled(torch.ones(1, 2))
    assert (watch.forwards, len(found)) == (1, 1)


def test_a_copy_or_pickle_takes_no_watch_along():
    """A copy and a saved module work, unwatched."""
    model = nn.Linear(2, 1).eval()
    with watch_inference(model, on_violation="raise") as watch:
        copy.deepcopy(model)(torch.ones(1, 2))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        torch.load(file, weights_only=False)(torch.ones(1, 2))
    assert watch.forwards == 0


def test_remove_leaves_no_hook():
    """After remove() the module has no hook, and forwards are not counted."""
    model = nn.Linear(2, 1).eval()
    watch = watch_inference(model)
    watch.remove()
    assert not model._forward_hooks
    model(torch.ones(1, 2))
    assert watch.forwards == 0


@pytest.mark.parametrize(
    ("model", "choice", "error", "said"),
    [
        (3, "warn", TypeError, "torch.nn.Module, got int"),
        (nn.ReLU(), "explode", ValueError, "'explode' is not one of"),
    ],
)
def test_bad_arguments_fail_at_the_call(model, choice, error, said):
    """Each bad argument is a clear error at the call."""
    with pytest.raises(error, match=said):
        watch_inference(model, on_violation=choice)


def test_train_mode_without_effect():
    """A model whose forward is the same in both modes may stay in train mode."""
    model = nn.Linear(2, 1)
    with watch_inference(model, on_violation="raise") as watch, torch.no_grad():
        model(torch.ones(1, 2))
    assert watch.violations == 0


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 1)

    def encode(self, x):
        return self.embed(x)


def test_a_method_is_watched():
    """A method beside forward is watched, and named by its caller; copies take no watch along."""
    model = Clip().eval()
    found = []
    with watch_inference(model, name="clip", methods="encode", on_violation=found.append) as watch:
        for _ in range(2):
            model.encode(torch.ones(1, 2))  # call
        copied = copy.deepcopy(model)
        copied.encode(torch.ones(1, 2))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        torch.load(file, weights_only=False).encode(torch.ones(1, 2))
    assert (watch.forwards, watch.violations, len(found)) == (2, 2, 1)
    assert copied.encode.__self__ is copied
    assert found[0].finding.source.endswith("# call")
    assert str(found[0]).startswith("clip: ")
    assert "encode" not in vars(model)


class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, x):
        x = x.requires_grad_()
        energy = self.net(x).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, -slope


def test_a_forward_that_differentiates_may_record():
    """An energy model needs its graph: the advice of no_grad would break it."""
    model = Forces().eval()
    with watch_inference(model, on_violation="raise") as watch:
        model(torch.ones(2, 3))
    assert watch.violations == 0


def test_a_callable_that_raises_breaks_no_request(caplog):
    """What on_violation raises is logged and goes no further."""

    def broken(error):
        raise OSError(error)

    model = nn.Linear(2, 1).eval()
    with watch_inference(model, on_violation=broken) as watch:
        model(torch.ones(1, 2))
    assert watch.violations == 1
    assert any(record.exc_info for record in caplog.records)


def test_a_script_module_by_itself_cannot_be_watched():
    """torch runs no hooks on it; in a module of its own it can be, as the message says."""
    model = torch.jit.script(torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match="runs no forward hooks on script modules"):
        watch_inference(model)
    model = torch.nn.Sequential(model)
    model.eval()
    with watch_inference(model) as watch, torch.no_grad():
        model(torch.ones(1, 2))
    assert (watch.forwards, watch.findings) == (1, [])
