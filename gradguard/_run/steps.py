"""Optimizer steps: without any gradient, in eval mode, and parameters that never get one."""

import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradguard._run import texts
from gradguard._run.findings import Finding, Site, here
from gradguard._run.modules import Modules, Seen, owned


class _Pending(NamedTuple):
    """A parameter that took part in every step so far and has had no gradient."""

    reference: "weakref.ref[Tensor]"
    names: tuple[str, ...]
    owners: tuple[Seen, ...]
    whole: Seen | None


class Trained:
    """What is known of one optimizer."""

    def __init__(self, optimizer: Optimizer, made: Site | None) -> None:
        self.kind = type(optimizer).__name__
        self.made = made
        self.steps = 0
        self.fresh: list[weakref.ref[Tensor]] = []  # since its last step
        self.pending: list[_Pending] = []
        self.in_train_mode: set[int] = set()  # outermost modules that had a step so, by id of Seen
        self.count_of_roots = -1
        self.roots: list[Seen] = []


class _Empty(NamedTuple):
    kind: str
    trainable: int


class Steps:
    """Checks every step of every optimizer."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._by_id: dict[int, tuple[weakref.ref[Optimizer], Trained]] = {}
        self._unlearned: list[Trained] = []  # of optimizers that are gone
        self._empty: dict[Site, tuple[_Empty, int]] = {}
        self._in_eval: dict[Site, tuple[str, Site, int]] = {}
        self.steps = 0

    def of(self, optimizer: Optimizer, made: Site | None = None) -> Trained:
        """Return what is known of an optimizer."""
        key = id(optimizer)
        if key not in self._by_id:
            trained = Trained(optimizer, made)
            reference = weakref.ref(optimizer, lambda _: self._forget(key))
            self._by_id[key] = (reference, trained)
            trained.fresh += [weakref.ref(p) for p in parameters(optimizer)]
        return self._by_id[key][1]

    def alive(self) -> list[tuple[Optimizer, Trained]]:
        """Return the optimizers that are alive."""
        pairs = [(reference(), trained) for reference, trained in list(self._by_id.values())]
        return [(optimizer, trained) for optimizer, trained in pairs if optimizer is not None]

    def step(self, optimizer: Optimizer) -> Trained:
        """Check one step, when the gradients are there."""
        trained = self.of(optimizer)
        self.steps += 1
        trained.steps += 1
        if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            self._follow(trained)
            self._check_eval(optimizer, trained)
        else:
            self._add_empty(optimizer, trained)
        return trained

    def finish(self) -> Iterator[Finding]:
        """Yield what was found."""
        for site, (empty, count) in self._empty.items():
            yield Finding("empty-step", site, texts.empty_step(*empty), count)
        for site, (kind, step, count) in self._in_eval.items():
            yield Finding("eval-mode", site, texts.eval_mode(kind, step, count), count)
        for trained in [*self._unlearned, *(one for _, one in list(self._by_id.values()))]:
            yield from _without_gradient(trained)

    def _forget(self, key: int) -> None:
        _, trained = self._by_id.pop(key)
        if trained.pending:
            self._unlearned.append(trained)

    def _add_empty(self, optimizer: Optimizer, trained: Trained) -> None:
        trainable = sum(map(_can_learn, parameters(optimizer)))
        if trainable:
            site = here()
            _, count = self._empty.get(site, (None, 0))
            self._empty[site] = (_Empty(trained.kind, trainable), count + 1)

    def _follow(self, trained: Trained) -> None:
        if trained.fresh:
            fresh = [reference() for reference in trained.fresh]
            trained.fresh = []
            missing = [p for p in fresh if p is not None and p.grad is None and _can_learn(p)]
            trained.pending += self._named(missing)
        if trained.pending:
            trained.pending = [one for one in trained.pending if _still(one.reference())]

    def _named(self, missing: list[Tensor]) -> list[_Pending]:
        of = self._modules.of
        return [
            _Pending(
                weakref.ref(one.tensor),
                one.names,
                tuple(of(owner) for owner in one.owners),
                None if one.whole is None else of(one.whole),
            )
            for one in (owned(missing) if missing else ())
        ]

    def _check_eval(self, optimizer: Optimizer, trained: Trained) -> None:
        if trained.count_of_roots != self._modules.outermost:
            trained.count_of_roots = self._modules.outermost
            trained.roots = self._roots_of(optimizer)
        left: dict[Site, str] = {}
        step = None
        for seen in trained.roots:
            if seen.training:
                trained.in_train_mode.add(id(seen))
            elif id(seen) in trained.in_train_mode and _learns(seen, optimizer):
                step = step or here()
                left.setdefault(seen.evaluated or step, seen.kind)
        for site, kind in left.items():
            _, _, count = self._in_eval.get(site, (None, None, 0))
            self._in_eval[site] = (kind, step or site, count + 1)

    def _roots_of(self, optimizer: Optimizer) -> list[Seen]:
        held = set(map(id, parameters(optimizer)))
        pairs = [(seen, seen.reference()) for seen in list(self._modules.by_id.values())]
        return [
            seen
            for seen, module in pairs
            if seen.outermost
            and module is not None
            and any(id(p) in held for p in module.parameters())
        ]


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return what an optimizer holds."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _can_learn(parameter: Tensor) -> bool:
    # One of a lazy module that has not run yet has no size.
    return parameter.requires_grad and (is_lazy(parameter) or parameter.numel() > 0)


def _still(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.grad is None and parameter.requires_grad


def _learns(seen: Seen, optimizer: Optimizer) -> bool:
    module = seen.reference()
    held = set(map(id, parameters(optimizer)))
    own = [] if module is None else module.parameters()
    return any(id(p) in held and p.requires_grad and p.grad is not None for p in own)


def _without_gradient(trained: Trained) -> Iterator[Finding]:
    by_site: dict[Site, list[str]] = {}
    for one in trained.pending:
        if any(owner.recorded for owner in one.owners):
            by_site.setdefault(_site(one, trained), []).append(one.names[0])
    for site, names in by_site.items():
        yield Finding("no-gradient", site, _text(trained, names), trained.steps, tuple(names))


def _site(one: _Pending, trained: Trained) -> Site:
    calls = [seen.call for seen in (one.whole, *one.owners) if seen is not None]
    known = [call for call in (*calls, trained.made) if call is not None]
    return known[0] if known else Site("<unknown>", 0, "")


def _text(trained: Trained, names: Sequence[str]) -> str:
    return texts.no_gradient(trained.kind, trained.steps, len(names))
