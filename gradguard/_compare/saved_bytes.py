"""What autograd holds on to: the bytes kept for backward, and the nodes of the graph."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.nn.parameter import is_lazy

from gradguard._graph.autograd_graph import nodes

_PARTS = {
    torch.strided: ("detach",),
    torch.jagged: ("detach",),
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
"""The methods that give the tensors with storage that a tensor of this layout consists of."""


class SavedBytes:
    """The bytes that autograd keeps for backward under `hooks`, parameters left out.

    A storage counts once, whole, however many saved tensors share it, from when the first is
    saved until the last is let go: also for a function that drops its graph before it returns.

    Attributes:
        most: the most bytes kept at one time.

    """

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._parameters = {s for p in _all_parameters() for s in _storages(p)}
        self._users: Counter[UntypedStorage] = Counter()

    def hooks(self) -> saved_tensors_hooks:
        """Make the context manager in which what is saved counts."""
        return saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def _pack(self, tensor: Tensor) -> "_Saved":
        saved = _Saved(tensor)
        for storage in set(_storages(tensor)) - self._parameters:
            if not self._users[storage]:
                self._now += storage.nbytes()
            self._users[storage] += 1
            weakref.finalize(saved, self._release, storage)
        self.most = max(self.most, self._now)
        return saved

    def _release(self, storage: UntypedStorage) -> None:
        self._users[storage] -= 1
        if not self._users[storage]:
            del self._users[storage]
            self._now -= storage.nbytes()


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        # Detached: a node that saves its own result would otherwise hold itself, for ever.
        self.tensor = tensor.detach()


def _all_parameters() -> list[nn.Parameter]:
    # A saved tensor is often a view of a parameter (`weight.t()`) that only its storage tells,
    # and the function may have its module from anywhere: so every parameter that is alive.
    # By type: isinstance would ask lazy proxies for their __class__, and so wake them.
    return [value for value in gc.get_objects() if issubclass(type(value), nn.Parameter)]


def _storages(tensor: Tensor) -> list[UntypedStorage]:
    # Of other layouts (mkldnn) the memory cannot be had, and a lazy parameter has none yet.
    if is_lazy(tensor) or tensor.layout not in _PARTS:
        return []
    parts = [getattr(tensor.detach(), name)() for name in _PARTS[tensor.layout]]
    return [part.untyped_storage() for part in parts]


def graph(roots: Iterable[object]) -> set[Node]:
    """Return the nodes that the tensors among the roots lead to."""
    found = [root.grad_fn for root in roots if isinstance(root, Tensor)]
    return {node for start in found if start is not None for node in nodes(start)}
