"""The parameters of a module under all their names, and the choice of some by glob."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradguard._core.text import one_line
from gradguard._core.torch_versions import never_compiled
from gradguard._graph.listing import prefixes


class NamedParameter(NamedTuple):
    """One parameter; a tied one has several names, the first is what `named_parameters` gives."""

    names: tuple[str, ...]
    parameter: Tensor

    @property
    def can_learn(self) -> bool:
        """Whether training should give it a gradient: not frozen, and not without elements."""
        lazy = is_lazy(self.parameter)  # has no size yet
        return self.parameter.requires_grad and (lazy or self.parameter.numel() > 0)


def check_module(module: object, asker: str) -> None:
    """Check that what was given is a module.

    Raises:
        TypeError: if it is not; ``asker`` is who says so.

    """
    if not isinstance(module, nn.Module):
        msg = (
            f"{asker} needs a torch.nn.Module, got {type(module).__name__}: pass the model itself."
        )
        raise TypeError(msg)


def parameters_of(module: nn.Module, asker: str) -> list[NamedParameter]:
    """List the parameters of a module.

    Raises:
        TypeError: if it is not a module; ``asker`` is who says so.
        ValueError: if it has no parameters, so that nothing could ever be found wrong.

    """
    check_module(module, asker)
    tied: dict[int, tuple[Tensor, list[str]]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), (parameter, []))[1].append(name)
    if not tied:
        msg = (
            f"{asker}: {type(module).__name__} has no parameters, so nothing could be found wrong. "
            "torch registers what is assigned to self as a Parameter or Module; a plain list or "
            "dict of modules is not registered: use nn.ModuleList or nn.ModuleDict."
        )
        raise ValueError(msg)
    return [NamedParameter(tuple(names), parameter) for parameter, names in tied.values()]


def matcher(
    parameters: Sequence[NamedParameter], globs: Iterable[str], option: str
) -> Callable[[NamedParameter], bool]:
    """Make the test whether a parameter, under any of its names, matches any of the globs.

    Raises:
        TypeError: if a glob is not a string; ``option`` is the argument that is blamed.
        ValueError: if a glob matches none of the parameters.

    """
    one = isinstance(globs, (str, bytes)) or not hasattr(globs, "__iter__")
    patterns: tuple[str, ...] = (globs,) if one else tuple(globs)  # type: ignore[assignment]
    for pattern in patterns:
        if not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = (
                f"{option}= takes globs on parameter names, such as 'encoder.*' or a list of them, "
                f"got {type(pattern).__name__}."
            )
            raise TypeError(msg)
        if not any(_matches(named, pattern) for named in parameters):
            raise ValueError(_no_match(parameters, option, pattern))
    return lambda named: any(_matches(named, pattern) for pattern in patterns)


def _no_match(parameters: Sequence[NamedParameter], option: str, pattern: str) -> str:
    close = get_close_matches(pattern, _possible_globs(parameters))
    hint = (
        f"Close: {', '.join(map(one_line, close))}."
        if close
        else "See the names with dict(module.named_parameters())."
    )
    return f"{option}={one_line(repr(pattern))} matches no parameter of the module. {hint}"


def _matches(named: NamedParameter, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in named.names)


def _possible_globs(parameters: Iterable[NamedParameter]) -> list[str]:
    names = [name for named in parameters for name in named.names]
    return [*names, *{f"{prefix}*": None for name in names for prefix in prefixes(name) if prefix}]


never_compiled(globals())
