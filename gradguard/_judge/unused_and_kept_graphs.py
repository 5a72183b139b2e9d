"""`recorded-eval` and `kept-graph`: forwards recorded for nothing, and graphs that stay."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.distributions import Distribution
from torch.jit import is_tracing  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateImportUsage] (a documented name)

from gradguard._core.torch_versions import exports, sequence_number
from gradguard._graph.tensors import Parts, Way, items, walk
from gradguard._judge import referrers, wording
from gradguard._judge.facts import Forward
from gradguard._judge.lines import Line, codes_of, line_at
from gradguard._judge.scene import Scene

_FEW = 4  # less than one in so many without a backward: a batch that was skipped, not a fault
_MANY = 10  # graphs that stay
# How many of a line's forwards are followed, to follow one takes 0.2 ms: up to so many, one in.
_SHARES = ((32, 1), (256, 8), (1024, 32), (8192, 128))
_LEAST = 512
_OUTPUTS = 8
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
        self.grows = False  # whether more were alive than `_MANY` before
        self.limit = _MANY  # with more alive they are looked at


class _Graph:
    """Hangs in a graph, so that it goes with it; called when backward comes through."""

    __slots__ = ("__weakref__", "_calling", "_used")

    def __init__(self, calling: Calling, step: int) -> None:
        self._calling = calling
        self._used = False
        calling.followed += 1
        calling.alive[id(self)] = step

    def __call__(self, _: object) -> None:
        if not self._used:
            self._used = True
            self._calling.used += 1
        scene = self._calling.scene()
        if scene is not None:
            scene.backward_at = scene.tick()

    def __del__(self) -> None:
        self._calling.dropped += not self._used
        self._calling.alive.pop(id(self), None)


class Graphs:
    """Follows what the program's own calls of modules return."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._lines: dict[tuple[int, int, bool], Calling] = {}
        self._muted: set[CodeType] = set()

    def returned(
        self, forward: Forward, output: object, frame: FrameType, owner: nn.Module
    ) -> bool:
        """Follow one output; tell whether its line was known."""
        key = (id(frame.f_code), frame.f_lasti, forward.training)
        calling = self._lines.get(key)
        known = calling is not None
        if calling is None:
            calling = self._lines[key] = Calling(self._scene, forward, owner, frame)
        calling.calls += 1
        if calling.calls % _share(calling.calls) or exports(forward.frame):
            return known
        if not is_tracing():  # type: ignore[no-untyped-call]
            self._follow(calling, output, forward.since)
        return known

    def mute(self, codes: Iterable[CodeType]) -> None:
        """Say nothing of what runs in this code: it is told already why it records."""
        self._muted.update(codes)

    def unused_evals(self) -> Iterator[nn.Module]:
        """Yield the modules that were evaluated with a graph that nobody used."""
        for calling in self._lines.values():
            module = calling.module()
            if module is not None and calling.dropped and not (calling.training or calling.used):
                yield module

    def step(self) -> None:
        """Look whether the graphs of earlier steps grow in number."""
        for calling in self._lines.values():
            if len(calling.alive) > calling.limit and self._old(calling) > calling.limit:
                count = self._kept(calling)
                if count <= calling.limit:  # garbage, in a cycle: to collect it takes long
                    calling.limit *= 2
                    continue
                if calling.grows:
                    self._tell_kept(calling, count)
                calling.grows, calling.limit = True, count + _MANY

    def finish(self, *, crashed: bool) -> None:
        """Tell what was found; of a graph that is alive at a crash nothing can be said."""
        for calling in list(self._lines.values()):
            count = 0 if crashed else self._kept(calling)
            if count > _MANY:
                self._tell_kept(calling, count)
            elif not calling.training:
                self._tell_unused(calling, crashed=crashed)

    def _follow(self, calling: Calling, output: object, since: int) -> None:
        if isinstance(output, Tensor):
            nodes = {output.grad_fn}
        else:
            nodes = {each.grad_fn for _, each in walk(output, _parts) if isinstance(each, Tensor)}
        known = [node for node in nodes if node is not None][:_OUTPUTS]
        if known:
            graph: Callable[[Any], None] = _Graph(calling, self._scene.steps)
            for node in {*known, *_first_nodes(known, since)}:
                node.register_prehook(graph)

    def _kept(self, calling: Calling) -> int:
        """Count the graphs from before the last step that something holds."""
        count = self._old(calling)
        if count > _MANY:
            gc.collect()  # what only a cycle holds goes when Python gets to it
            count = self._old(calling)
        return count

    def _old(self, calling: Calling) -> int:
        steps = self._scene.steps
        if not steps:
            return len(calling.alive) - 2
        return sum(step < steps - 1 for step in list(calling.alive.values()))

    def _tell_unused(self, calling: Calling, *, crashed: bool) -> None:
        unused = calling.dropped if crashed else calling.followed - calling.used
        if unused * _FEW <= calling.followed or not calling.codes.isdisjoint(self._muted):
            return
        self._scene.ledger.add(
            "recorded-eval",
            calling.line,
            wording.recorded_eval(calling.kind, unused),
            count=unused,
            model=calling.kind,
            severity="notice",
        )

    def _tell_kept(self, calling: Calling, count: int) -> None:
        if calling.codes.isdisjoint(self._muted) and not self._scene.ledger.has(
            "kept-graph", calling.line
        ):
            message = _kept_graph(calling.kind, count, referrers.of_graphs())
            self._scene.ledger.add(
                "kept-graph",
                calling.line,
                message,
                count=count,
                model=calling.kind,
                severity="notice",
            )


def _parts(_: Way, value: object) -> Parts | None:
    """Give what a forward returns in one: a policy's distribution keeps its tensors to itself."""
    return items(vars(value) if isinstance(value, Distribution) else value)


def _share(calls: int) -> int:
    for end, share in _SHARES:
        if calls <= end:
            return share
    return _LEAST


def _first_nodes(outputs: list[Node], since: int) -> list[Node]:
    """Return operations of a forward that depend on no other of its own, near its beginning.

    They stay alive where anything of the graph does: a kept attention map, a running mean.
    """
    seen, stack, found = set(outputs), list(outputs), list[Node]()
    while stack and len(seen) < _NODES and len(found) < _OUTPUTS:
        node = stack.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        inner = [child for child in children if since <= sequence_number(child) < _LEAF]
        if children and not inner:
            found.append(node)
        fresh = [child for child in inner if child not in seen]
        seen.update(fresh)
        stack += fresh
    return found


def _kept_graph(model: str, count: int, holder: str | None) -> str:
    held = f" {holder} holds them." if holder else ""
    return (
        f"The graphs of {count} earlier forwards of the {model} are still alive, ever more of "
        f"them: memory grows with every step.{held}\n"
        "To do: keep loss.item() or output.detach() instead of the tensor with its graph; where "
        "no backward follows, call the model under `with torch.no_grad():`."
    )
