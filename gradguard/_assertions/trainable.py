"""The assertion that a model can be trained as asked, before it is."""

import dis
from collections.abc import Iterable, Iterator
from itertools import pairwise
from types import FunctionType

from torch import nn
from torch.nn.parameter import is_lazy

from gradguard._assertions.compiling import UNCOMPILED
from gradguard._core.rank import with_rank
from gradguard._core.torch_versions import never_compiled, not_compiled
from gradguard._errors import GradModeError
from gradguard._graph.advice import OUTSIDE
from gradguard._graph.autograd_graph import inference_tensors, is_inference
from gradguard._graph.listing import Names, Section, listed
from gradguard._graph.parameters import NamedParameter, matcher, parameters_of


@not_compiled(UNCOMPILED)
def assert_trainable(module: nn.Module, *, frozen: Iterable[str] = ()) -> None:
    """Check that a model can be trained as asked, before it is.

    No parameter is frozen (has ``requires_grad`` False) except those that ``frozen`` names, those
    are frozen, and no parameter or buffer is an inference tensor. Such a tensor comes about when a
    module is made, first run (lazy modules), copied, converted or loaded with ``assign=True`` in
    inference mode. A parameter that is one still says ``requires_grad`` True, but backward can
    succeed and leave its ``grad`` None, and then the optimizer skips it silently
    (https://docs.pytorch.org/docs/stable/notes/autograd.html#inference-mode). Converted outside
    (``.double()``) it is no inference tensor any more and yet cannot be trained, which only its
    missing version counter tells.

    ``module.requires_grad = False`` sets a plain attribute and freezes nothing: that is found where
    parameters of that module do require grad, unless the class sets the attribute itself.

    A tied parameter counts as named when any of its names is. Parameters that cannot require grad
    (integers) may be frozen unnamed. A lazy module that has not run yet passes: check again after
    its first forward. In a compiled function it breaks the graph.

    Args:
        module: the model.
        frozen: globs (`fnmatch.fnmatchcase`) on names as ``named_parameters()`` gives them, where
            ``*`` matches dots too; one string is one glob.

    Raises:
        GradModeError: names the parameters, buffers and modules.
        ValueError: if a glob matches no parameter, or the module has none.
        TypeError: if ``module`` is not a module, or a glob not a string.

    Example:
        >>> from torch import nn
        >>> from gradguard import assert_trainable
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = model[0].requires_grad_(False)
        >>> assert_trainable(model, frozen=["0.*"])
        >>> assert_trainable(model)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradguard.GradModeError: assert_trainable: ...(requires_grad False)...
          0.weight
          0.bias
        ...

    """
    __tracebackhide__ = True
    every = parameters_of(module, "assert_trainable")
    named = matcher(every, frozen, "frozen")
    sections = [
        *_frozen(every, [one for one in every if named(one)]),
        *_created_in_inference_mode(module, every),
        _attributes(module),
    ]
    if any(section.found for section in sections):
        first = (
            f"assert_trainable: {type(module).__name__} ({len(every)} parameters) cannot be "
            "trained as asked."
        )
        raise GradModeError(with_rank(listed([first], sections)))


def _frozen(every: list[NamedParameter], on_purpose: list[NamedParameter]) -> Iterator[Section]:
    names = [one.names for one in every]
    others = [one for one in every if one not in on_purpose and _may_require_grad(one)]
    yield Section(
        "Parameters that are frozen (requires_grad False) though no glob of frozen= says so",
        [one.names for one in others if not one.parameter.requires_grad],
        names,
        "requires_grad_(True) on them, or name them in frozen=.",
    )
    yield Section(
        "Parameters that frozen= names but that are not frozen (requires_grad True)",
        [one.names for one in on_purpose if one.parameter.requires_grad],
        names,
        "requires_grad_(False) on them, or take them out of frozen=.",
    )


def _may_require_grad(one: NamedParameter) -> bool:
    """Tell whether ``requires_grad_(True)`` is possible: not on integers and inference tensors."""
    parameter = one.parameter
    kind = parameter.dtype
    return is_lazy(parameter) or (
        (kind.is_floating_point or kind.is_complex) and not parameter.is_inference()
    )


def _created_in_inference_mode(module: nn.Module, every: list[NamedParameter]) -> Iterator[Section]:
    yield Section(
        "Parameters created in inference mode: autograd leaves them out or refuses them "
        '("Inference tensors do not track version counter"), and no optimizer can update them '
        '("Inplace update to inference tensor outside InferenceMode is not allowed")',
        [one.names for one in every if is_inference(one.parameter)],
        [one.names for one in every],
        OUTSIDE,
    )
    yield Section(
        'Buffers created in inference mode: autograd cannot save them ("Inference tensors cannot '
        'be saved for backward"), and they cannot be updated',
        [(name,) for name in inference_tensors(module.named_buffers())],
        [(name,) for name, _ in module.named_buffers()],
        OUTSIDE,
        noun="buffers",
    )


def _attributes(module: nn.Module) -> Section:
    modules = dict(module.named_modules(remove_duplicate=False))
    return Section(
        "Modules with an attribute requires_grad False, which freezes nothing: their parameters "
        "still require grad",
        [_name(name) for name, each in modules.items() if _meant_to_freeze(each)],
        [_name(name) for name in modules],
        "module.requires_grad_(False) on them, and name their parameters in frozen=; or delete the "
        "attribute.",
        noun="modules",
    )


def _name(name: str) -> Names:
    return (name or "the module itself",)


def _meant_to_freeze(module: nn.Module) -> bool:
    if vars(module).get("requires_grad") is not False or _sets_it_itself(type(module)):
        return False
    return any(parameter.requires_grad for parameter in module.parameters())


def _sets_it_itself(kind: type) -> bool:
    """Tell whether a class has a meaning of its own for `requires_grad`."""
    for each in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        members = list(vars(each).values())
        if "requires_grad" in vars(each) or any(map(_sets_it, members)):
            return True
    return False


def _sets_it(member: object) -> bool:
    if not isinstance(member, FunctionType) or "requires_grad" not in member.__code__.co_names:
        return False
    instructions = list(dis.get_instructions(member))
    own = member.__code__.co_varnames[:1]
    return any(
        one.opname == "STORE_ATTR" and one.argval == "requires_grad" and _loads(before, own)
        for before, one in pairwise(instructions)
    )


def _loads(instruction: dis.Instruction, own: tuple[str, ...]) -> bool:
    loaded = instruction.argval
    return bool(own) and (loaded == own[0] or (isinstance(loaded, tuple) and own[0] in loaded))


never_compiled(globals())


assert_trainable.__module__ = "gradguard"
