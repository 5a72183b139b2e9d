"""`mode-leak`: a mode left switched, and training that went on in it."""

import weakref
from collections.abc import Collection

from torch import nn

from gradguard._judge.facts import Forward, Left
from gradguard._judge.lines import here, path_of
from gradguard._judge.scene import Scene

_NOT_RECORDED = "element 0 of tensors does not require grad and does not have a grad_fn"

_PATHS = 256  # of recorded forwards; a program has few


class Leaks:
    """Takes a mode that was left for a fault once training is seen to go on in it.

    That grad is off outside every block is no fault by itself: a script may predict at its end, or
    switch by plain calls around each evaluation. What tells training from that: a backward of what
    was not recorded, a step with nothing recorded before it, a `train()` after the switch, or the
    very way through the program by which a recorded forward came before. A validation may go that
    way, too: so it must be a function with forwards of its own that has left the mode, or nothing
    switches back until the end.
    """

    def __init__(self, scene: Scene) -> None:
        self.watched = False  # whether all that is seen is a model that is trained
        self._scene = scene
        self._paths: set[int] = set()
        self._suspect: tuple[Left, int] | None = None
        self._same_way: dict[int, Left] = {}  # by number of the switch
        self._within: set[int] = set()  # the switches of functions that called a module then
        self._train_wanted: dict[int, list[weakref.ref[nn.Module]]] = {}  # by number of the switch

    def recorded(self, forward: Forward, *, known: bool) -> None:
        """Note a recorded forward in train mode; `known`: its way was noted before."""
        self._suspect = None
        if not known and len(self._paths) < _PATHS:
            self._paths.add(hash(path_of(forward.frame)))

    def unrecorded(self, forward: Forward) -> None:
        """Look at a forward in train mode that recorded nothing because a mode was left."""
        left = forward.left
        if left is None or not _learns(forward.module):
            return
        self._suspect = left, self._scene.tick()
        self._called(left)
        same_way = self._is_same_way(forward, left)
        at_once = left.returned and (self.watched or (same_way and left.number in self._within))
        if at_once or self._is_wanted(forward.module, left):
            self._tell(left, "forward")
        elif same_way:
            self._same_way[left.number] = left

    def finish(self, still_left: Collection[int]) -> None:
        """Tell those of the switches with these numbers that nothing has taken back."""
        for number, left in self._same_way.items():
            if number in still_left:
                self._tell(left, "forward")

    def train_wanted(self, module: nn.Module, left: Left) -> None:
        """Note that a module in eval mode, or one given to `train()`, was so in a left mode."""
        self._called(left)
        known = self._train_wanted.setdefault(left.number, [])
        if not any(reference() is module for reference in known):
            known.append(weakref.ref(module))

    def failing_backward(self, left: Left | None) -> bool:
        """Look at a backward of what was not recorded; tell whether a leak explains it."""
        cause = self._suspect[0] if self._suspect is not None else left
        if cause is not None:
            self._tell(cause, "backward")
        return cause is not None

    def step(self, last: int) -> bool:
        """Look at a step; tell whether it changed nothing because a mode was left."""
        suspect = self._suspect
        if suspect is None or suspect[1] < last or self._scene.recorded_at > last:
            return False
        self._tell(suspect[0], "forward")
        return True

    def _called(self, left: Left) -> None:
        if not left.returned:
            self._within.add(left.number)

    def _is_same_way(self, forward: Forward, left: Left) -> bool:
        """Tell whether a recorded forward came the same way before."""
        known = left.returned or left.constant
        return known and hash(path_of(forward.frame)) in self._paths

    def _is_wanted(self, module: nn.Module, left: Left) -> bool:
        for reference in self._train_wanted.get(left.number, ()):
            root = reference()
            if root is not None and id(module) in self._scene.modules.tree(root):
                return True
        return False

    def _tell(self, left: Left, what: str) -> None:
        message = _mode_leak(left, what)
        line = left.line or here()
        self._scene.ledger.add("mode-leak", line, message, first_step=self._scene.steps + 1)


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _mode_leak(left: Left, what: str) -> str:
    grad, inference = left.state
    mode = "Inference mode was left on" if inference else "Grad mode was left off"
    if grad and not inference:
        mode = "The mode was left switched"
    went_on = {
        "forward": "a forward in train mode recorded nothing",
        "backward": f"backward() was called on what was not recorded ({_NOT_RECORDED!r})",
    }[what]
    todo = "switch it by `with torch.no_grad():` (or a decorator), which ends with its block"
    if left.line is None:
        where = (
            "What switched it has returned, or is suspended at a `yield` or `await`, and was not "
            "seen: run the program under `gradguard run SCRIPT`, or put `with gradguard.trace() as "
            "switches:` around it and print(switches)."
        )
    elif left.suspended:
        where = (
            "This line's block is still open: its function is suspended in it, at a `yield` or "
            "`await`, and until it goes on the mode holds for the whole thread."
        )
        todo = (
            "`yield` or `await` outside the block, or decorate the function with "
            "`gradguard.isolated`, whose mode stays inside"
        )
    else:
        where = "This line switched it, and nothing switched it back."
    return f"{mode}, and training went on in it: {went_on}. {where}\nTo do: {todo}."
