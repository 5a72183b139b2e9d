"""gradguard.assert_trainable, assert_parameters_used and assert_gradients."""

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradguard import (
    GradModeError,
    assert_gradients,
    assert_parameters_used,
    assert_trainable,
)
from gradguard._core.places import file_shown


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


X = torch.ones(1, 2)
CHECKS = {
    "assert_trainable": assert_trainable,
    "assert_parameters_used": lambda module, **given: assert_parameters_used(
        torch.ones(1, requires_grad=True), module, **given
    ),
    "assert_gradients": assert_gradients,
}


def inference(make):
    """Make a module in inference mode."""
    with torch.inference_mode():
        return make()


def complaint(check, *args, **given):
    with pytest.raises(GradModeError) as caught:
        check(*args, **given)
    text = str(caught.value)
    assert text.startswith(f"{check.__name__}: ")
    assert "To do: " in text
    assert len(text.splitlines()) <= 25
    return text


def backward(module, loss=None):
    (module(X).sum() if loss is None else loss).backward()
    return module


# What the three have in common.


@pytest.mark.parametrize("name", CHECKS)
def test_model_without_parameters(name):
    """A model without parameters is a ValueError, not a check that cannot fail."""
    with pytest.raises(ValueError, match=f"^{name}: Tanh has no parameters"):
        CHECKS[name](nn.Tanh())


@pytest.mark.parametrize("name", CHECKS)
def test_not_a_module(name):
    """What is not a module is a TypeError that names the assertion and the type."""
    with pytest.raises(TypeError, match=f"^{name} needs a torch.nn.Module, got list"):
        CHECKS[name]([Net()])


@pytest.mark.parametrize("name", CHECKS)
def test_glob_that_matches_nothing(name):
    """Such a glob is an error at once, whatever the state of the model, with close names."""
    option = "frozen" if name == "assert_trainable" else "allow"
    with pytest.raises(ValueError, match=rf"^{option}='heads\.\*' matches no .*Close: head\.\*"):
        CHECKS[name](backward(Net()), **{option: ["encoder.*", "heads.*"]})


@pytest.mark.parametrize("globs", [5, None, b"encoder.*", ["encoder.*", 5], True])
@pytest.mark.parametrize("name", CHECKS)
def test_globs_that_are_none(name, globs):
    """What is no string or strings is a TypeError that names the argument and what came."""
    option = "frozen" if name == "assert_trainable" else "allow"
    kind = type(globs[1] if isinstance(globs, list) else globs).__name__
    with pytest.raises(TypeError, match=rf"^{option}= takes globs on .*, got {kind}\."):
        CHECKS[name](Net(), **{option: globs})


@pytest.mark.parametrize("name", ["assert_gradients", "assert_trainable"])
def test_tied_parameter_is_reported_once_with_its_names(name):
    """One tensor under two names counts as one, and both names are said."""
    model = Net()
    model.tail = model.head
    model.requires_grad_(name == "assert_gradients")
    text = complaint(
        CHECKS[name],
        model,
        **{"allow": "e*"} if model.head.weight.requires_grad else {"frozen": "e*"},
    )
    assert "  head.weight (tied: tail.weight)\n  head.bias (tied: tail.bias)\n" in text
    assert "(2):" in text


def test_names_of_a_wrapped_model():
    """A compiled model's parameters are named as its named_parameters does."""
    compiled = torch.compile(nn.Linear(2, 1), backend="eager")
    assert "_orig_mod.weight" in complaint(assert_gradients, compiled)
    assert_gradients(compiled, allow=["_orig_mod.*"])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo's, of a loss at a graph break
@pytest.mark.parametrize("check", ["trainable", "used", "gradients", None])
def test_they_are_checked_in_a_compiled_function(check):
    """In a compiled step they break the graph and are checked there, not passed over."""
    torch._dynamo.reset()
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)])
    if check == "trainable":
        model[1].requires_grad_(False)

    @torch.compile(backend="eager")
    def step(x):
        assert_trainable(model)
        loss = model[1](x).sum() if check == "used" else model[1](model[0](x)).sum()
        assert_parameters_used(loss, model)
        if check == "gradients":
            assert_gradients(model)
        return loss * 2

    if check is None:
        assert step(X).requires_grad
    else:
        with pytest.raises(GradModeError, match=check):
            step(X)


# assert_trainable


def test_trainable_model_passes():
    """A new model, and one whose frozen parameters are all named, pass."""
    model = Net()
    assert_trainable(model)
    model.encoder.requires_grad_(False)
    assert_trainable(model, frozen=["encoder.*"])
    assert_trainable(model, frozen="encoder.*")


def test_frozen_by_accident():
    """A frozen parameter is said to have requires_grad False; a whole submodule is one entry."""
    model = Net()
    model.encoder.requires_grad_(False)
    text = complaint(assert_trainable, model)
    assert "requires_grad False" in text
    assert "  encoder.* (20 parameters)\n" in text
    assert "(20):" in text
    assert "name them in frozen=" in text


def test_not_frozen_though_named():
    """A parameter that should be frozen and is not is said to have requires_grad True."""
    text = complaint(assert_trainable, Net(), frozen=["head.*"])
    assert "not frozen (requires_grad True) (2):\n  head.weight\n  head.bias\n" in text
    assert "requires_grad_(False)" in text


def test_inference_parameters_and_buffers():
    """Parameters and buffers created in inference mode are named apart, with the way out."""
    model = nn.Sequential(inference(lambda: nn.BatchNorm1d(2)), nn.BatchNorm1d(2))
    text = complaint(assert_trainable, model)
    parameters, buffers = text.split("Buffers created in inference mode")
    assert "Parameters created in inference mode" in parameters
    assert "  0.weight\n  0.bias\n" in parameters
    assert "  0.running_mean\n  0.running_var\n  0.num_batches_tracked\n" in buffers
    assert "copy.deepcopy(module) outside it makes a copy that can be trained" in parameters
    assert_trainable(copy.deepcopy(model))  # as the message says


def test_frozen_inference_parameter_is_still_one():
    """Freezing on purpose does not make an inference tensor fit for training."""
    model = inference(Net).requires_grad_(False)
    assert "created in inference mode" in complaint(assert_trainable, model, frozen="*")


def test_lazy_module_passes_until_it_has_run_in_inference_mode():
    """Uninitialized parameters are ordinary ones; a first forward in inference mode spoils them."""
    lazy = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    assert_trainable(lazy)
    inference(lambda: lazy.eval()(X))
    assert "0.weight" in complaint(assert_trainable, lazy)


def test_all_faults_in_a_big_model_fit_the_message():
    """Each kind of fault has its part in the message, within 25 lines whatever the size."""
    model = nn.ModuleList(nn.BatchNorm1d(1) for _ in range(100))
    model.extend(inference(lambda: nn.BatchNorm1d(1)) for _ in range(100))
    for layer in list(model)[:50]:
        layer.weight.requires_grad_(False)
        layer.requires_grad = False
    text = complaint(assert_trainable, model, frozen=["*.bias"])
    for number in ("(50):", "(200):", "(200):", "(300):", "(50):"):
        assert number in text
    assert "and 190 more" in text


@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.half, nn.Module.bfloat16])
def test_parameters_converted_outside_inference_mode(convert):
    """A parameter whose version counter alone is missing is found: training it crashes."""
    model = convert(inference(Net))
    assert not any(parameter.is_inference() for parameter in model.parameters())
    text = complaint(assert_trainable, model)
    assert 'refuses them ("Inference tensors do not track version counter")' in text
    assert "  * (22 parameters)\n" in text
    with pytest.raises(RuntimeError, match="Inference tensors do not track version counter"):
        model(X.to(model.head.weight.dtype)).sum().backward()
    assert_trainable(copy.deepcopy(model))  # as the message says


def test_the_errors_that_torch_gives_are_quoted():
    """What torch says at an update, a forward and a save of such tensors is in the message."""
    model = inference(lambda: nn.BatchNorm1d(2))
    text = complaint(assert_trainable, model)
    with pytest.raises(RuntimeError) as at_update, torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(RuntimeError) as at_save:
        model.eval()(X).sum().backward()
    for error in (at_update, at_save):
        assert any(quote in str(error.value) for quote in re.findall('"([^"]+)"', text))


def test_requires_grad_on_a_module():
    """Setting the attribute on a Module freezes nothing, and is said of each such module."""
    model = Net()
    model.head.requires_grad = False
    text = complaint(assert_trainable, model)
    assert "Modules with an attribute requires_grad False, which freezes nothing" in text
    assert "(1):\n  head\n" in text
    model.head.requires_grad_(False)  # as the message says
    assert_trainable(model, frozen="head.*")
    model = Net()
    model.requires_grad = False
    assert "  the module itself\n" in complaint(assert_trainable, model)
    del model.requires_grad  # or so
    assert_trainable(model)


class Own(nn.Linear):
    """A module with a `requires_grad` of its own."""

    def __init__(self):
        super().__init__(1, 1)
        self.requires_grad = False


class ByMethod(nn.Linear):
    def freeze(self):
        self.requires_grad, self.frozen = False, True


class ByProperty(nn.Linear):
    requires_grad = False


@pytest.mark.parametrize("make", [Own, lambda: ByMethod(1, 1), lambda: ByProperty(1, 1)])
def test_requires_grad_of_the_classes_own_is_no_fault(make):
    """A class that sets or has the attribute itself means something by it."""
    model = make()
    model.requires_grad = False
    assert_trainable(model)


def test_integers_may_be_frozen_unnamed():
    """A parameter that cannot require grad is not frozen by accident."""
    model = Net()
    model.table = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert_trainable(model)


def test_the_rank_is_told(process_group):
    """While a process group is initialized each message says the rank."""
    model = Net()
    for check, arguments in [
        (assert_gradients, (model,)),
        (assert_parameters_used, (model.encoder(X).sum(), model)),
        (assert_parameters_used, (X.sum(), model)),
        (assert_trainable, (Net().requires_grad_(False),)),
    ]:
        with pytest.raises(GradModeError, match=f"^rank 0 of 1: {check.__name__}: "):
            check(*arguments)


def test_a_loss_without_graph_quotes_torch():
    """The error that backward() would give is quoted."""
    with pytest.raises(RuntimeError) as at_backward:
        X.sum().backward()
    assert f'("{at_backward.value}")' in complaint(assert_parameters_used, X.sum(), Net())


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sets(st.integers(0, 29)))
def test_whatever_is_frozen_and_named(learn, named):
    """It passes exactly when the parameters that are named are those that are frozen."""
    model = nn.ParameterList(torch.ones(1) for _ in learn)
    for parameter, learns in zip(model, learn, strict=True):
        parameter.requires_grad_(learns)
    named = {at for at in named if at < len(learn)}
    globs = [str(at) for at in named]
    if named == {at for at, learns in enumerate(learn) if not learns}:
        assert_trainable(model, frozen=globs)
    else:
        complaint(assert_trainable, model, frozen=globs)


# assert_parameters_used


def test_used_parameters_pass():
    """A loss that all parameters take part in passes, before and after backward."""
    model = Net()
    loss = model(X).sum()
    assert_parameters_used(loss, model)
    loss.backward()
    assert_parameters_used(loss, model)


def test_unused_parameters_are_named():
    """Parameters that the loss does not reach are named, with total and remedy."""
    model = Net()
    text = complaint(assert_parameters_used, model.encoder(X).sum(), model)
    assert "does not reach 2 of 22 trainable parameters of Net" in text
    assert "Not in the graph (2):\n  head.weight\n  head.bias\n" in text
    assert "allow=" in text
    assert "gradguard.trace()" in text
    assert "checkpoint" not in text


def test_detached_submodule_is_grouped():
    """What stands behind a detach is not reached; beyond ten, submodules stand for it."""
    model = Net()
    text = complaint(assert_parameters_used, model.head(model.encoder(X).detach()).sum(), model)
    assert "  encoder.* (20 parameters)\n" in text


def test_allowed_frozen_and_empty_parameters_are_left_out():
    """Parameters that are allowed, frozen or without elements need not be reached."""
    model = Net()
    model.extra = nn.Linear(2, 2).requires_grad_(False)
    model.empty = nn.Parameter(torch.ones(0))
    loss = model.encoder(X).sum()
    assert_parameters_used(loss, model, allow=["head.*"])
    assert_parameters_used(model(X).sum(), model, allow=["head.*"])  # may be reached as well


def test_inference_parameters_come_first():
    """Of those that the loss does not reach, inference tensors are named first, and as such."""
    model = nn.ModuleList([nn.Linear(2, 2), inference(lambda: nn.Linear(2, 2))])
    text = complaint(assert_parameters_used, model[1](X).sum(), model)
    assert text.index("Created in inference mode") < text.index("Not in the graph")
    assert text.index("  1.weight\n") < text.index("  0.weight\n")
    assert "outside inference mode" in text


def test_lazy_parameters_are_said_to_be_uninitialized():
    """A lazy module that never ran is said not to have run."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.LazyLinear(2)])
    text = complaint(assert_parameters_used, model[0](X).sum(), model)
    assert "have not run yet (2):\n  1.weight\n  1.bias\n" in text
    assert "Not in the graph" not in text


def test_reentrant_checkpoint_may_hide_parameters():
    """Behind a reentrant checkpoint the error says that they may be hidden, and where to look."""
    model = Net()
    x = X.clone().requires_grad_()
    loss = model.head(checkpoint(model.encoder, x, use_reentrant=True)).sum()
    text = complaint(assert_parameters_used, loss, model)
    assert "may be hidden: the loss passes through CheckpointFunctionBackward" in text
    assert "assert_gradients after backward()" in text
    assert_parameters_used(loss, model, allow=["encoder.*"])
    loss.backward()
    assert_gradients(model)


def test_checkpoint_is_not_blamed_for_inference_tensors():
    """Where only inference tensors are not reached, nothing is said to be hidden."""
    model = nn.ModuleList([nn.Linear(2, 2), inference(lambda: nn.Linear(2, 2))])
    x = X.clone().requires_grad_()
    loss = model[0](checkpoint(torch.sin, x, use_reentrant=True)).sum()
    assert "hidden" not in complaint(assert_parameters_used, loss, model)


def test_other_checkpoint_hides_nothing():
    """The graph inside a non-reentrant checkpoint is there before backward."""
    model = Net()
    assert_parameters_used(checkpoint(model, X, use_reentrant=False).sum(), model)


def test_loss_that_is_one_of_the_parameters():
    """A parameter that is the loss itself is reached."""
    model = nn.ParameterList([torch.ones(1)])
    assert_parameters_used(model[0], model)


def test_very_deep_network():
    """Ten thousand layers, one of them shared, are no trouble."""
    model = nn.ParameterList(torch.ones(1) for _ in range(1000))
    x = torch.ones(1)
    for parameter in 10 * list(model)[1:]:
        x = x * parameter
    assert "(1):\n  0\n" in complaint(assert_parameters_used, x.sum(), model)


def no_graph_under_no_grad(model):
    with torch.no_grad():
        return model(X).sum()


def no_graph_under_inference_mode(model):
    with torch.inference_mode():
        return model(X).sum()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda model: model(X).sum().detach(), "was detached (.detach()"),
        (no_graph_under_no_grad, "under a no_grad that has ended"),
        (no_graph_under_inference_mode, "it is an inference tensor, computed in inference mode"),
        (lambda model: model.requires_grad_(False)(X).sum(), "no parameter of the module has req"),
    ],
)
def test_loss_without_graph(make, why):
    """A loss without graph is said to have none, with the reason as far as it can be told."""
    model = Net()
    text = complaint(assert_parameters_used, make(model), model)
    assert text.startswith("assert_parameters_used: the loss has no graph, so backward() reaches")
    assert why in text
    assert "python -m gradguard run" in text


@pytest.mark.parametrize(
    ("guard", "why"),
    [
        (torch.no_grad, "grad mode is off at this line"),
        (torch.inference_mode, "inference mode is on at this line"),
    ],
)
def test_loss_without_graph_where_the_mode_is_wrong(guard, why):
    """Where the mode is still wrong at the line of the assertion, the line that switched it is named."""
    model = Net()
    loss = model(X).sum().detach()
    with guard():
        text = complaint(assert_parameters_used, loss, model)
    assert why in text
    assert f"{file_shown(__file__)}:" in text
    assert "with guard():" in text


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"loss": X, "extra": [X]}, 'got dict. It holds tensors at ["loss"], ["extra"][0]: pass'),
        ((X, 1), "got tuple. It holds tensors at [0]: pass"),
        (1.0, "got float. A number has no graph"),
        (None, "got NoneType. Pass the tensor that backward() is called on"),
    ],
)
def test_loss_that_is_no_tensor(loss, says):
    """Anything but a tensor is a TypeError that names it and says what to pass."""
    with pytest.raises(TypeError, match=f"needs the loss as a torch.Tensor, {re.escape(says)}"):
        assert_parameters_used(loss, Net())


# assert_gradients


def test_gradients_pass():
    """After backward every trainable parameter has its gradient, sparse or not."""
    assert_gradients(backward(Net()))
    sparse = nn.Embedding(3, 2, sparse=True)
    backward(sparse, sparse(torch.tensor([1])).sum())
    assert sparse.weight.grad.is_sparse
    assert_gradients(sparse)


def test_missing_gradients_are_named():
    """Parameters without gradient are named, with total and remedy."""
    model = Net()
    backward(model, model.encoder(X).sum())
    text = complaint(assert_gradients, model)
    assert "no gradient for 2 of 22 trainable parameters of Net" in text
    assert "Not reached by a backward (2):\n  head.weight\n  head.bias\n" in text
    assert "before zero_grad()" in text
    assert_gradients(model, allow=["head.*"])


def test_before_backward_the_whole_model_is_one_entry():
    """When no parameter has a gradient the message does not list the model."""
    assert "  * (22 parameters)\n" in complaint(assert_gradients, Net())


def test_inference_tensors_come_first():
    """The message says first which of those without gradient are inference tensors."""
    model = nn.ModuleList([nn.Linear(2, 2), inference(lambda: nn.Linear(2, 2)), nn.LazyLinear(1)])
    backward(model, model[1](X).sum())  # torch is silent, and gives the bias alone a gradient
    text = complaint(assert_gradients, model)
    order = [
        "Created in inference mode",
        "  1.weight\n",
        "Uninitialized",
        "  2.weight\n",
        "Not reached",
        "  0.weight\n",
    ]
    assert sorted(order, key=text.index) == order
    assert "  1.bias" not in text


def test_frozen_and_empty_parameters_need_no_gradient():
    """Frozen parameters and those without elements are left out, also when all are."""
    model = Net()
    model.encoder.requires_grad_(False)
    model.empty = nn.Parameter(torch.ones(0))
    assert_gradients(backward(model))
    assert_gradients(Net().requires_grad_(False))


def test_zeroed_gradients_count():
    """Gradients zeroed in place are gradients; those set to None are not."""
    model = backward(Net())
    model.zero_grad(set_to_none=False)
    assert_gradients(model)
    model.zero_grad()
    complaint(assert_gradients, model)
