"""What an optimizer trains of a model, looked up cheaply at each step."""

from operator import is_

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradguard._graph.autograd_graph import is_inference
from gradguard._graph.listing import Names
from gradguard._graph.parameters import Named, parameters_of

_REFRESH = 100  # steps between two looks for new modules; a walk at each would cost a percent


class Trained:
    """The parameters of a model that an optimizer holds, with their names, and the buffers."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, asker: str) -> None:
        self._model = model
        self._optimizer = optimizer
        self._asker = asker
        self._steps = 0
        self.parameters: list[Named] = []
        self.stale: list[Names] = []  # names of held parameters that are the model's no longer
        self._look_around(self._held_now())

    def step(self) -> list[Named]:
        """Return the parameters that this step updates; groups may have been added, or modules."""
        self._steps += 1
        held = self._held_now()
        same = len(held) == len(self._held) and all(map(is_, held, self._held))
        if not same or len(self._asked) < len(self.parameters) or self._steps % _REFRESH == 0:
            self._look_around(held)
        return self.parameters

    def refreshed(self) -> list[Named]:
        """Look around now, as names may have gone; return the parameters."""
        self._look_around(self._held)
        return self.parameters

    def inference_tensors(self) -> dict[str, list[Names]]:
        """Name the inference tensors among parameters, buffers and optimizer state."""
        found = {
            "parameters": self._inference_parameters(),
            "buffers": self._inference_buffers(),
            "optimizer state": self._inference_state(),
        }
        return {what: names for what, names in found.items() if names}

    def _held_now(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _look_around(self, held: list[Tensor]) -> None:
        named = {id(one.parameter): one for one in parameters_of(self._model, self._asker)}
        held_now = {id(p) for p in held}
        gone = [one for one in self.parameters if id(one.parameter) not in named]
        self.stale += [one.names for one in gone if id(one.parameter) in held_now]
        self._held = held
        self.parameters = [named[id(p)] for p in held if id(p) in named]
        # A lazy parameter cannot be asked, and becomes an ordinary one without notice: as long as
        # there is one, each step looks around.
        self._asked = [one.parameter for one in self.parameters if not is_lazy(one.parameter)]
        self._buffers = [
            (name, module._buffers)  # noqa: SLF001 (named_buffers at each step costs a percent)
            for name, module in self._model.named_modules()
            if module._buffers  # noqa: SLF001
        ]

    def _inference_parameters(self) -> list[Names]:
        if not any([parameter.is_inference() for parameter in self._asked]):  # noqa: C419 (faster)
            return []
        return [one.names for one in self.parameters if is_inference(one.parameter)]

    def _inference_buffers(self) -> list[Names]:
        return [
            (f"{module}.{name}".lstrip("."),)
            for module, buffers in self._buffers
            for name, buffer in buffers.items()
            if buffer is not None and is_inference(buffer)
        ]

    def _inference_state(self) -> list[Names]:
        states = self._optimizer.state.values()  # by value: a look-up hashes in Python, in Tensor
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        if not any([value.is_inference() for value in kept]):  # noqa: C419
            return []
        return [
            (f"{one.names[0]}: {name}",)
            for one in self.parameters
            for name, value in self._optimizer.state.get(one.parameter, {}).items()
            if isinstance(value, Tensor) and value.is_inference()
        ]
