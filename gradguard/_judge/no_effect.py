"""`no-effect`: a guard made and dropped, and `requires_grad` set on a Module."""

from types import FrameType

from torch import nn

from gradguard._judge.lines import line_at, user_frame
from gradguard._judge.scene import Scene
from gradguard._judge.unused_and_kept_graphs import Graphs


class NoEffect:
    """Tells what was written and does nothing."""

    def __init__(self, scene: Scene, graphs: Graphs) -> None:
        self._scene = scene
        self._graphs = graphs

    def dropped_guard(self, guard: str, frame: FrameType) -> None:
        """Tell of a guard that was made as a statement; what it should cover explains the rest."""
        self._scene.ledger.add("no-effect", line_at(frame), _dropped_guard(guard))
        self._graphs.mute([frame.f_code])

    def flag_on_module(self, module: nn.Module, value: object, frame: FrameType | None) -> None:
        """Look at a flag set on a module from outside, where its parameters say otherwise."""
        user = user_frame(frame)
        own = user is not None and user.f_locals.get("self") is module
        if own or all(p.requires_grad is value for p in module.parameters()):
            return
        line = None if user is None else line_at(user)
        kind = type(module).__name__
        self._scene.ledger.add("no-effect", line, _flag_on_module(kind), model=kind)


def _dropped_guard(guard: str) -> str:
    return (
        f"{guard}() as a statement has no effect: the guard is made and dropped, and operations "
        "are recorded as before.\n"
        f"To do: write `with torch.{guard}():` around the code, or decorate the function with "
        f"@torch.{guard}()."
    )


def _flag_on_module(module: str) -> str:
    return (
        f"requires_grad was set on a {module}, which is a Module: that makes a plain attribute, "
        "and freezes nothing.\n"
        "To do: call module.requires_grad_(False), which sets it on all its parameters."
    )
