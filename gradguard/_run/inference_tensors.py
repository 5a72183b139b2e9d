"""Inference tensors among what is trained: parameters, buffers and optimizer state."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._graph.autograd_graph import is_inference
from gradguard._run import texts
from gradguard._run.findings import Finding, Site, here
from gradguard._run.modules import Modules, Seen, owned, plain
from gradguard._run.steps import Steps, parameters

_UNKNOWN = Site("<unknown>", 0, "")


class InferenceTensors:
    """Looks when an optimizer is made, at first forwards, at ever fewer steps, and at the end."""

    def __init__(self, modules: Modules, steps: Steps) -> None:
        self._modules = modules
        self._steps = steps
        self._told: set[str] = set()
        self._found: dict[tuple[Site, str], list[str]] = {}

    def look_at_group(self, tensors: Iterable[Tensor]) -> None:
        """Look at the parameters that an optimizer is given."""
        found = list(filter(is_inference, tensors))
        if found:
            self._add(here(), texts.PARAMETERS, _names(found))

    def look_at_module(self, module: nn.Module, seen: Seen) -> None:
        """Look at what a module itself holds, when a forward in train mode is recorded first."""
        if not module.training or seen.call is None:
            return
        if seen.outermost:
            self._look_into(module, seen.call)
            return
        # Its own: named_parameters takes longer, and would walk each subtree again.
        own = (*module._parameters.values(), *module._buffers.values())  # noqa: SLF001
        found = [one for one in own if one is not None and is_inference(one)]
        if found:
            self._add(here(), texts.PARAMETERS, _names(found))

    def look_at_step(self, optimizer: Optimizer) -> None:
        """Look at all that an optimizer trains."""
        self._look(optimizer, here())

    def finish(self) -> Iterator[Finding]:
        """Look at all that is alive and trained, and yield what was found."""
        for optimizer, trained in self._steps.alive():
            self._look(optimizer, trained.made or _UNKNOWN)
        for seen in list(self._modules.by_id.values()):
            module = seen.reference()
            if module is not None and seen.outermost and seen.training:
                self._look_into(module, seen.call or _UNKNOWN)
        for (site, what), names in self._found.items():
            message = texts.inference_tensor(what, len(names))
            yield Finding("inference-tensor", site, message, len(names), tuple(names))

    def _look(self, optimizer: Optimizer, site: Site) -> None:
        held = parameters(optimizer)
        found = list(filter(is_inference, held))
        if found:
            self._add(site, texts.PARAMETERS, _names(found))
        states = [
            (parameter, name)
            for parameter in held
            for name, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and is_inference(value)
        ]
        if states:
            named = {id(one.tensor): one.names[0] for one in owned(p for p, _ in states)}
            self._add(site, texts.STATE, [f"{named[id(p)]}: {name}" for p, name in states])
        ours = set(map(id, held))
        for seen in list(self._modules.by_id.values()):
            module = seen.reference()
            if module is None or not seen.outermost:
                continue
            if any(id(p) in ours for p in module.parameters()):
                self._look_into(module, site)

    def _look_into(self, module: nn.Module, site: Site) -> None:
        for what, named in (
            (texts.PARAMETERS, module.named_parameters()),
            (texts.BUFFERS, module.named_buffers()),
        ):
            found = [plain(name) for name, tensor in named if is_inference(tensor)]
            if found:
                self._add(site, what, found)

    def _add(self, site: Site, what: str, names: Iterable[str]) -> None:
        fresh = [name for name in names if name not in self._told]
        self._told.update(fresh)
        if fresh:
            self._found.setdefault((site, what), []).extend(fresh)


def _names(tensors: list[Tensor]) -> list[str]:
    return [one.names[0] for one in owned(tensors)]
