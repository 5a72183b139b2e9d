"""Forwards in eval mode that recorded a graph on which no backward followed."""

from collections.abc import Iterator

from torch import nn

from gradguard._graph.tensors import tensors
from gradguard._run import texts
from gradguard._run.findings import Finding, Site, here
from gradguard._run.modules import is_nested

_FEW = 4  # less than one in so many without a backward: a batch that was skipped, not a fault


class _Line:
    """The recorded eval forwards of one line."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.recorded = 0
        self.followed = 0
        self.dropped = 0  # graphs that are gone, without a backward


class _Call:
    """One of them; its graph holds it, so that it goes with the graph."""

    __slots__ = ("_followed", "_line")

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._followed = False

    def __call__(self, _: object) -> None:
        """Note that backward has come to what the forward returned."""
        if not self._followed:
            self._followed = True
            self._line.followed += 1

    def __del__(self) -> None:
        self._line.dropped += not self._followed


class RecordedEvals:
    """Looks at what each outermost forward in eval mode returns."""

    def __init__(self) -> None:
        self._lines: dict[Site, _Line] = {}

    def look_at(self, module: nn.Module, output: object) -> None:
        """Look at one forward of a module in eval mode."""
        nodes = {tensor.grad_fn for _, tensor in tensors(output)} - {None}
        if not nodes or is_nested():
            return
        line = self._lines.setdefault(here(), _Line(type(module).__name__))
        line.recorded += 1
        call = _Call(line)
        for node in nodes:
            if node is not None:
                node.register_prehook(call)

    def finish(self, *, crashed: bool) -> Iterator[Finding]:
        """Yield what was found; of a graph that is alive at a crash nothing can be said."""
        for site, line in self._lines.items():
            unused = line.dropped if crashed else line.recorded - line.followed
            if unused * _FEW > line.recorded:
                yield Finding("recorded-eval", site, texts.recorded_eval(line.kind, unused), unused)
