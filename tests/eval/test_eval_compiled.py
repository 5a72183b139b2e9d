"""Eval mode under ``torch.compile``: right, or an error at compile time. Never silently lost."""

import pytest
import torch
from torch import nn

from gradguard import evaluating, inference_function, inference_method

X = torch.ones(64, 4)


class Net(nn.Module):
    """A network that draws at random in train mode, and has a method of each kind to predict."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5)))
        self.norm = nn.BatchNorm1d(4).eval()

    def forward(self, x):
        return self.norm(self.body(x))

    @inference_method
    def predict(self, x):
        return self(x)

    @inference_method
    def stream(self, x):
        for _ in range(2):
            yield self(x)


class DecoratedForward(Net):
    forward = inference_method(mode="no_grad")(Net.forward)


def block(net, x):
    with evaluating(net):
        return net(x)


def block_of_parts(net, x):
    with evaluating(net.body, net.norm) as (body, norm):
        return norm(body(x))


def decorated(net, x):
    return evaluating(net)(lambda: net(x))()


def method(net, x):
    return net.predict(x)


def stream(net, x):
    return sum(net.stream(x)) / 2


@inference_function
def predict(model, x):
    return model(x)


@inference_function(modules=("models", "net"))
def of_named(x, models, *, net):
    return net.norm(models["body"](x))


def function(net, x):
    return predict(net, x=x)


def function_with_names(net, x):
    return of_named(x, {"body": net.body}, net=net)


def forward(net, x):
    return net(x)


FORMS = [
    *((Net, form) for form in (block, block_of_parts, decorated, method, stream, function)),
    (Net, function_with_names),
    (DecoratedForward, forward),
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=FORMS, ids=[form.__name__ for _, form in FORMS])
def net_and_form(request):
    kind, form = request.param
    torch.manual_seed(0)
    return kind(), form


def flags(net):
    return [module.training for module in net.modules()]


def wanted(net):
    before = flags(net)
    result = nn.Module.eval(net).norm(net.body(X)).detach()
    for module, flag in zip(net.modules(), before, strict=True):
        module.training = flag
    return result


def is_right(result, net, before):
    return torch.allclose(result, wanted(net), atol=1e-6) and flags(net) == before


def test_compiled_with_graph_breaks(net_and_form):
    """By default the result is right in train mode, in eval mode and after each change."""
    net, form = net_and_form
    compiled = torch.compile(form, backend="eager")
    for part in (net, net, net.body[1], net):
        part.train(not part.training)
        before = flags(net)
        for _ in range(2):
            assert is_right(compiled(net, X), net, before)


def test_compiled_without_graph_breaks(net_and_form):
    """With ``fullgraph=True`` it is right in eval mode, else an error that says what to do."""
    net, form = net_and_form
    if form in (stream, decorated, function_with_names) and torch.__version__ < "2.13":
        pytest.skip("Dynamo cannot follow it at all, in no mode: an error, if not one in our words")
    compiled = torch.compile(form, backend="eager", fullgraph=True)
    net.eval()
    assert is_right(compiled(net, X), net, flags(net))
    for part in (net, net.body[1]):
        net.eval()
        part.train()
        before = flags(net)
        with pytest.raises(Exception, match="around the compiled call") as caught:
            compiled(net, X)
        assert "evaluating" in str(caught.value)
        assert flags(net) == before
    net.eval()
    assert is_right(compiled(net, X), net, flags(net))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_around_the_compiled_call(fullgraph):
    """What the error advises is right: the scope around, whatever is compiled inside."""
    net = Net()
    before = flags(net)
    compiled = torch.compile(net, backend="eager", fullgraph=fullgraph)
    for _ in range(2):
        with evaluating(compiled):
            assert is_right(compiled(X), net, [False] * len(before))
        assert is_right(predict(compiled, X), net, before)
        assert not torch.allclose(compiled(X), wanted(net))
        assert flags(net) == before


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_forward_that_is_compiled_inside(fullgraph):
    """A method that calls a compiled forward, of its own or in place, is right."""
    attribute, in_place = Net(), Net()
    attribute.forward = torch.compile(attribute.forward, backend="eager", fullgraph=fullgraph)
    in_place.compile(backend="eager", fullgraph=fullgraph)
    for net in (attribute, in_place):
        before = flags(net)
        for _ in range(2):
            assert is_right(net.predict(X), net, before)
            assert all(is_right(part, net, before) for part in net.stream(X))
            with evaluating(net):
                assert is_right(net(X), net, [False] * len(before))
            assert flags(net) == before


def test_a_train_inside_is_no_silent_loss():
    """A ``train()`` in a compiled block is undone, or compiling fails."""

    def retrained(net, x):
        with evaluating(net):
            result = net(x)
            net.train()
        return result

    net = Net().eval()
    before = flags(net)
    assert is_right(torch.compile(retrained, backend="eager")(net, X), net, before)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"around the compiled call|GenericContextWrapping"):  # 2.6
        torch.compile(retrained, backend="eager", fullgraph=True)(net.eval(), X)


def test_strict_export():
    """A strict export of a decorated forward is right in eval mode, an error in train mode."""
    net = DecoratedForward()
    with pytest.raises(Exception, match="around the compiled call"):
        torch.export.export(net, (X,), strict=True)
    exported = torch.export.export(net.eval(), (X,), strict=True).module()
    assert torch.allclose(exported(X), wanted(net), atol=1e-6)


def test_export():
    """A non-strict export of a decorated forward puts the module in eval mode itself."""
    net = DecoratedForward()
    before = flags(net)
    exported = torch.export.export(net, (X,), strict=False).module()
    assert torch.allclose(exported(X), wanted(net), atol=1e-6)
    assert flags(net) == before
