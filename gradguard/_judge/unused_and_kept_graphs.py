"""`recorded-eval` and `kept-graph`: forwards recorded for nothing, and graphs that stay."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.jit import is_tracing  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateImportUsage] (a documented name)
from torch.nn.utils.parametrize import ParametrizationList

from gradguard._core.torch_versions import exports, next_sequence_number
from gradguard._graph.attributes import own_attributes
from gradguard._graph.tensors import Parts, Way, attribute, items, walk
from gradguard._judge import referrers, wording
from gradguard._judge.facts import Forward
from gradguard._judge.followed_graph import (
    MANY,
    OUTPUTS,
    Calling,
    FollowedGraph,
    first_nodes,
    numbers_near,
)
from gradguard._judge.scene import Scene

_FEW = 4  # less than one in so many without a backward: a batch that was skipped, not a fault
# How many of a line's forwards are followed, to follow one takes 0.2 ms: up to so many, one in.
_SHARES = ((32, 1), (256, 8), (1024, 32), (8192, 128))
_LEAST = 512


class Graphs:
    """Follows what the program's own calls of modules return."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._lines: dict[tuple[int, int, bool], Calling] = {}
        self._muted: set[CodeType] = set()
        self._evaluated: weakref.WeakSet[FollowedGraph] = weakref.WeakSet()

    def returned(
        self, forward: Forward, output: object, frame: FrameType, owner: nn.Module
    ) -> bool:
        """Follow one output; tell whether its line was known."""
        if isinstance(forward.module, ParametrizationList):
            return True  # a parametrized weight was read: no forward of a model
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

    def differentiated(self, roots: Iterable[object]) -> None:
        """Take what autograd is asked for some gradients of, not for those of all leaves.

        It goes through a part of the graph: a loss may compare what an attacked input and the
        input as it was give.
        """
        if self._evaluated:
            numbers = numbers_near(roots)
            for graph in list(self._evaluated):
                if graph.part_of(numbers):
                    self._evaluated.discard(graph)

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
                calling.grows, calling.limit = True, count + MANY

    def finish(self, *, crashed: bool) -> None:
        """Tell what was found; of a graph that is alive at a crash nothing can be said."""
        for calling in list(self._lines.values()):
            count = 0 if crashed else self._kept(calling)
            if count > MANY:
                self._tell_kept(calling, count)
            elif not calling.training:
                self._tell_unused(calling, crashed=crashed)

    def _follow(self, calling: Calling, output: object, since: int) -> None:
        if isinstance(output, Tensor):
            nodes = {output.grad_fn}
        else:
            nodes = {each.grad_fn for _, each in walk(output, _parts) if isinstance(each, Tensor)}
        known = [node for node in nodes if node is not None][:OUTPUTS]
        if known:
            graph = FollowedGraph(calling, self._scene.steps, range(since, next_sequence_number()))
            if not calling.training:
                self._evaluated.add(graph)
            for node in {*known, *first_nodes(known, since)}:
                node.register_prehook(graph)

    def _kept(self, calling: Calling) -> int:
        """Count the graphs from before the last step that something holds."""
        count = self._old(calling)
        if count > MANY:
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


def _parts(way: Way, value: object) -> Parts | None:
    """Give what a forward returns in one: a structure, or an object of a class of its own.

    Of objects only what is returned itself, or right in a list, tuple or mapping, and not what is
    an attribute: one may refer to everything.
    """
    found = items(vars(value) if isinstance(value, Distribution) else value)
    is_near = not way or (not way[0] and way[1] is not attribute)
    if found is None and is_near and not callable(value):
        return ((attribute, name, part) for name, part in own_attributes(value))
    return found


def _share(calls: int) -> int:
    for end, share in _SHARES:
        if calls <= end:
            return share
    return _LEAST


def _kept_graph(model: str, count: int, holder: str | None) -> str:
    held = f" {holder} holds them." if holder else ""
    return (
        f"The graphs of {count} earlier forwards of the {model} are still alive, ever more of "
        f"them: memory grows with every step.{held}\n"
        "To do: keep loss.item() or output.detach() instead of the tensor with its graph; where "
        "no backward follows, call the model under `with torch.no_grad():`."
    )
