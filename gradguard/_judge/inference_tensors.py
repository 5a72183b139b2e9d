"""`inference-tensor`: parameters, buffers or optimizer state created in inference mode."""

import weakref
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradguard._core.state import is_inference_mode_enabled
from gradguard._judge.facts import Forward
from gradguard._judge.lines import Line, here
from gradguard._judge.optimizers import Held, parameters
from gradguard._judge.scene import Scene

_FAILED = "nference tensor"  # cannot be saved for backward, or be updated outside its mode
_AT_ONCE = 512  # parameters that are looked at in one step
_PARAMETERS, _BUFFERS, _STATE = "parameters", "buffers", "optimizer state"


class InferenceTensors:
    """Looks where an optimizer is given parameters, at first recorded forwards, and at steps."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._created: dict[int, tuple[weakref.ref[Tensor], Line]] = {}
        self._told: dict[int, weakref.ref[Tensor]] = {}
        self._states: dict[int, Line] = {}

    def created(self, tensors: Iterable[Tensor], line: Line) -> None:
        """Note where inference tensors were created or put in their place."""
        for tensor in tensors:
            known = self._created.get(id(tensor))
            if known is None or known[0]() is not tensor:
                self._created[id(tensor)] = weakref.ref(tensor), line

    def about_to_run(self, module: nn.Module, line: Line) -> None:
        """Look at a module before a forward that records nothing: it makes its lazy parameters."""
        if is_inference_mode_enabled():
            every: list[Tensor] = list(module.parameters())
            self.created((p for p in every if is_lazy(p)), line)

    def loaded(self, held: Held, line: Line) -> None:
        """Take the state that an optimizer was given by `load_state_dict`."""
        if is_inference_mode_enabled():
            self._states[id(held)] = line

    def given(self, tensors: Iterable[Tensor], line: Line) -> None:
        """Look at the parameters that an optimizer is given."""
        self._look(_PARAMETERS, [p for p in tensors if p.requires_grad], line)

    def forward(self, module: nn.Module, line: Line, uses: Sequence[Tensor] | None = None) -> None:
        """Look at a module of which a forward in train mode is recorded, or at some it uses."""
        every = [*module.parameters(), *module.buffers()] if uses is None else uses
        buffers = [each for each in every if not isinstance(each, nn.Parameter)]
        self._look(_PARAMETERS, [p for p in every if p.requires_grad], line)
        if buffers and any(p.requires_grad for p in module.parameters()):
            self._look(_BUFFERS, buffers, line)
            if any(map(self._is_told, buffers)):
                trainable = (p for p in module.parameters() if p.requires_grad)
                self._scene.stopped.update(map(id, trainable))

    def failed(self, forward: Forward, error: RuntimeError) -> None:
        """Look at a module in train mode whose forward failed on what was set since the first."""
        if forward.recorded and forward.training and _FAILED in str(error):
            self.forward(forward.module, here(forward.frame))

    def step(self, optimizer: Optimizer, held: Held, line: Line) -> None:
        """Look at a step, ever more rarely: it takes as long as a look at all gradients."""
        if is_inference_mode_enabled():
            self._states.setdefault(id(held), line)
        if held.steps & (held.steps - 1):
            return
        some = _some(parameters(optimizer), held.steps.bit_length())
        self._look(_PARAMETERS, [p for p in some if p.requires_grad], line)
        if not is_inference_mode_enabled():
            self._look_at_state(optimizer, some, self._states.get(id(held), line))

    def look(self, tensors: Iterable[Tensor], line: Line) -> None:
        """Look at some of a trained model's parameters and buffers."""
        for tensor in tensors:
            if is_inference(tensor):
                trained = isinstance(tensor, nn.Parameter)
                if tensor.requires_grad or not trained:
                    self._look(_PARAMETERS if trained else _BUFFERS, [tensor], line)

    def _look_at_state(self, optimizer: Optimizer, some: list[Tensor], line: Line) -> None:
        states = (optimizer.state[p] for p in some if p in optimizer.state)
        values = [
            value
            for state in states
            if isinstance(state, dict)
            for value in state.values()
            if isinstance(value, Tensor) and value.dim() > 0
        ]
        self._look(_STATE, values, line)

    def _look(self, what: str, tensors: Iterable[Tensor], line: Line) -> None:
        by_line: dict[Line, list[Tensor]] = {}
        for tensor in tensors:
            if is_inference(tensor) and not self._is_told(tensor):
                self._told[id(tensor)] = weakref.ref(tensor)
                self._scene.explained.add(id(tensor))
                by_line.setdefault(self._line_of(tensor, line), []).append(tensor)
        for at, found in by_line.items():
            self._tell(what, found, at)

    def _is_told(self, tensor: Tensor) -> bool:
        known = self._told.get(id(tensor))
        return known is not None and known() is tensor

    def _line_of(self, tensor: Tensor, otherwise: Line) -> Line:
        known = self._created.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else otherwise

    def _tell(self, what: str, found: list[Tensor], line: Line) -> None:
        names = {} if what != _PARAMETERS else self._scene.modules.names(found)
        listed = [names[id(p)][1] for p in found if id(p) in names]
        if what == _BUFFERS:
            listed = self._buffer_names(found)
        self._scene.ledger.add(
            "inference-tensor",
            line,
            _inference_tensor(what, len(found)),
            parameters=listed,
            model=next((kind for kind, _ in names.values()), None),
            count=len(found),
            first_step=self._scene.steps + 1,
        )

    def _buffer_names(self, found: list[Tensor]) -> list[str]:
        wanted = {id(tensor) for tensor in found}
        return [
            name
            for module, _ in self._scene.modules.roots()[:1]
            for name, buffer in module.named_buffers()
            if id(buffer) in wanted
        ]


def _some(every: list[Tensor], turn: int) -> list[Tensor]:
    """Return all of a few tensors, else as many as one look may cost, others at each turn."""
    start = turn * _AT_ONCE % max(len(every), 1)
    return every[start : start + _AT_ONCE] if len(every) > _AT_ONCE else every


def is_inference(tensor: Tensor) -> bool:
    """Tell whether a tensor was created in inference mode, also where only its version tells.

    One that was converted outside (``.double()``) says no, yet has no version counter, and autograd
    treats it as before.
    """
    if type(tensor) is not nn.Parameter and is_lazy(tensor):  # by far the most are plain ones
        return False
    if tensor.is_inference():
        return True
    try:
        tensor._version  # noqa: B018, SLF001 (no public name asks for it)
    except RuntimeError:
        return True
    return False


def _inference_tensor(what: str, count: int) -> str:
    return (
        f"Inference tensors among the {what} that are trained ({count}): they were created in "
        "inference mode, and autograd leaves them out or fails on them ('Inference tensors cannot "
        "be saved for backward').\n"
        "To do: create, copy, load and convert the model outside torch.inference_mode() (a lazy "
        "module makes its parameters at its first forward), or use torch.no_grad() there."
    )
