"""gradguard._graph.parameters: parameters under all their names, and globs on them."""

import pytest
import torch
from torch import nn

from gradguard._graph.parameters import matcher, parameters_of


def tied():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def names(module):
    return [one.names for one in parameters_of(module, "me")]


def test_tied_parameter_is_one_with_several_names():
    """One tensor is listed once, under the name that named_parameters gives it first."""
    assert names(tied()) == [("embed.weight", "head.weight")]


def test_wrapped_modules_have_the_names_that_torch_gives():
    """A compiled model's parameters carry the wrapper's prefix, as in named_parameters."""
    assert names(torch.compile(nn.Linear(1, 1), backend="eager")) == [
        ("_orig_mod.weight",),
        ("_orig_mod.bias",),
    ]


def test_what_can_learn():
    """Frozen parameters and those without elements cannot learn; lazy ones will."""
    model = nn.ParameterDict(
        {
            "usual": nn.Parameter(torch.ones(1)),
            "frozen": nn.Parameter(torch.ones(1), requires_grad=False),
            "empty": nn.Parameter(torch.ones(0)),
            "lazy": nn.UninitializedParameter(),
        }
    )
    can = {one.names[0]: one.can_learn for one in parameters_of(model, "me")}
    assert can == {"usual": True, "frozen": False, "empty": False, "lazy": True}


@pytest.mark.parametrize("thing", [[nn.Linear(1, 1)], None, nn.Linear])
def test_not_a_module(thing):
    """What is no module is a TypeError that names the asker and the type."""
    with pytest.raises(
        TypeError, match=rf"^me needs a torch.nn.Module, got {type(thing).__name__}"
    ):
        parameters_of(thing, "me")


def test_module_without_parameters():
    """A model without parameters is a ValueError that says how that comes about."""
    with pytest.raises(ValueError, match=r"^me: Tanh has no parameters.*use nn.ModuleList"):
        parameters_of(nn.Tanh(), "me")


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ((), []),
        (["1.*"], ["1.weight", "1.bias"]),
        ("*.bias", ["0.bias", "1.bias"]),
        (iter(["0.weight", "1.b*"]), ["0.weight", "1.bias"]),
        (["[1].weight"], ["1.weight"]),
    ],
)
def test_globs_match_full_names(globs, expected):
    """Globs match whole dotted names; a single string is one glob; any iterable will do."""
    every = parameters_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "me")
    matches = matcher(every, globs, "allow")
    assert [one.names[0] for one in every if matches(one)] == expected


def test_glob_matches_any_name_of_a_tied_parameter():
    """Either name of a tied parameter is enough."""
    every = parameters_of(tied(), "me")
    assert matcher(every, ["head.*"], "allow")(every[0])
    assert matcher(every, ["embed.*"], "allow")(every[0])


@pytest.mark.parametrize(
    ("glob", "close"),
    [("encodr.*", "Close: encoder.*, "), ("encoder", "Close: encoder.*"), ("zzz", "Close: none")],
)
def test_glob_that_matches_nothing(glob, close):
    """Such a glob is named, with the option and the close names, a module's own name included."""
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(1, 1)), "head": nn.Linear(1, 1)})
    if close == "Close: none":
        close = "See the names with dict(module.named_parameters())."
    with pytest.raises(ValueError, match="frozen=") as caught:
        matcher(parameters_of(model, "me"), ["head.*", glob], "frozen")
    assert str(caught.value).startswith(f"frozen={glob!r} matches no parameter")
    assert close in str(caught.value)


def test_glob_that_is_no_string():
    """A glob of another type is a TypeError that names the option and the type."""
    every = parameters_of(nn.Linear(1, 1), "me")
    with pytest.raises(TypeError, match=r"^allow= takes globs .*, got Parameter"):
        matcher(every, [every[0].parameter], "allow")
