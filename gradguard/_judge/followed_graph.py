"""Graphs that are followed from the forward that records them to their end."""

import weakref
from collections.abc import Iterable
from types import CodeType, FrameType

from torch import Tensor, nn
from torch.autograd.graph import Node

from gradguard._core.torch_versions import sequence_number
from gradguard._judge.facts import Forward
from gradguard._judge.lines import Line, codes_of, line_at
from gradguard._judge.scene import Scene

MANY = 10  # graphs that stay
OUTPUTS = 8
_NODES = 200
_LEAF = 2**64 - 1  # the sequence number of what is no operation


class Calling:
    """The recorded forwards of one line, in train or in eval mode."""

    def __init__(self, scene: Scene, forward: Forward, owner: nn.Module, frame: FrameType) -> None:
        self.scene = weakref.ref(scene)  # what hangs in a graph keeps all that it holds
        self.line: Line = line_at(frame)
        self.codes: frozenset[CodeType] = codes_of(frame)
        self.kind = type(owner).__name__
        self.module = weakref.ref(forward.module)
        self.training = forward.training
        self.calls = 0
        self.followed = 0
        self.used = 0
        self.dropped = 0  # graphs that are gone and were not used
        self.alive: dict[int, int] = {}  # the step in which each graph that is alive was made
        self.grows = False  # whether more were alive than `MANY` before
        self.limit = MANY  # with more alive they are looked at


class FollowedGraph:
    """Hangs in a graph, so that it goes with it; called when backward comes through."""

    __slots__ = ("__weakref__", "_calling", "_numbers", "_used")

    def __init__(self, calling: Calling, step: int, numbers: range) -> None:
        self._calling = calling
        self._numbers = numbers  # of its operations
        self._used = False
        calling.followed += 1
        calling.alive[id(self)] = step

    def __call__(self, _: object) -> None:
        self._use()
        scene = self._calling.scene()
        if scene is not None:
            scene.backward_at = scene.tick()

    def part_of(self, numbers: Iterable[int]) -> bool:
        """Tell whether operations of it are among these; it then was of use."""
        if any(number in self._numbers for number in numbers):
            self._use()
        return self._used

    def _use(self) -> None:
        if not self._used:
            self._used = True
            self._calling.used += 1

    def __del__(self) -> None:
        self._calling.dropped += not self._used
        self._calling.alive.pop(id(self), None)


def first_nodes(outputs: list[Node], since: int) -> list[Node]:
    """Return operations of a forward that depend on no other of its own, near its beginning.

    They stay alive where anything of the graph does: a kept attention map, a running mean.
    """
    seen, stack, found = set(outputs), list(outputs), list[Node]()
    while stack and len(seen) < _NODES and len(found) < OUTPUTS:
        node = stack.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        inner = [child for child in children if since <= sequence_number(child) < _LEAF]
        if children and not inner:
            found.append(node)
        fresh = [child for child in inner if child not in seen]
        seen.update(fresh)
        stack += fresh
    return found


def numbers_near(roots: Iterable[object]) -> set[int]:
    """Return the numbers of the operations that came last, breadth first."""
    nodes = {root.grad_fn for root in roots if isinstance(root, Tensor)}
    level = {node for node in nodes if node is not None}
    seen = set(level)
    while level and len(seen) < _NODES:
        children = {child for node in level for child, _ in node.next_functions}
        level = {child for child in children if child is not None} - seen
        seen |= level
    return {sequence_number(node) for node in seen}
