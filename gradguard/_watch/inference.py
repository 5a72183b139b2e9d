"""The watch over serving: forwards that record a graph, or run in train mode."""

from collections.abc import Collection, Sequence
from types import FrameType

from torch import nn

from gradguard._findings.finding import Finding
from gradguard._graph.parameters import check_module
from gradguard._graph.tensors import tensors
from gradguard._judge.scene import is_recording
from gradguard._judge.serving import Serving
from gradguard._watch.hooks import Hook, Method, Running
from gradguard._watch.watch import OnViolation, Watch, check_has_hooks, row


def watch_inference(
    model: nn.Module,
    *,
    name: str | None = None,
    methods: Collection[str] = ("forward",),
    on_violation: OnViolation = "warn",
) -> "InferenceWatch":
    """Tell of each forward that records a graph or runs in train mode, until it is removed.

    In train mode means with a Dropout or BatchNorm acting. At most one violation a forward; each
    calling line is told once. A graph is seen by what the forward returns: one that is dropped
    inside is not, and a model whose forward differentiates (forces of an energy) is let record.
    What Dynamo inlines is not checked: watch the compiled module itself, whose calls are.

    Args:
        model: the module that serves, or its `torch.compile` or parallel wrapper.
        name: what its messages and report call it, by default ``"watch_inference"``.
        methods: which methods are watched; one string is one method.
        on_violation: ``"warn"`` with a `GradModeWarning` at the calling line, ``"raise"`` a
            `GradModeError` out of the forward, or a callable that is given the error, once for each
            line and kind; what it raises is logged, so that no request breaks.

    Returns:
        A handle: a context manager with ``remove()``, ``report()``, ``findings`` and the ints
        ``forwards`` and ``violations``.

    Raises:
        TypeError: the model is no module, or `methods` are no names.
        ValueError: `on_violation` is none of the above, or the model has no such method.

    >>> import torch
    >>> from gradguard import inference_mode, watch_inference
    >>> model = torch.nn.Linear(2, 1).eval()
    >>> with watch_inference(model, on_violation=lambda error: None) as watch:
    ...     with inference_mode():
    ...         _ = model(torch.ones(1, 2))
    ...     _ = model(torch.ones(1, 2))
    >>> watch.forwards, watch.violations, [finding.kind for finding in watch.findings]
    (2, 1, ['recorded-eval'])

    Source: `torch.nn.Module.register_forward_hook`.
    """
    chosen = (methods,) if isinstance(methods, str) else tuple(methods)
    wrong = [each for each in chosen if type(each) is not str]  # pyright: ignore[reportUnnecessaryIsInstance]
    if wrong or not chosen:
        raise TypeError(_bad_methods(repr(methods)))
    return InferenceWatch(model, name or "watch_inference", chosen, on_violation)


class InferenceWatch(Watch):
    """What `watch_inference` returns: a context manager that counts forwards and violations.

    >>> import gradguard, torch
    >>> model = torch.nn.Linear(2, 1).eval()
    >>> with gradguard.watch_inference(model) as watch, torch.no_grad():
    ...     _ = model(torch.ones(1, 2))
    >>> watch.forwards, watch.violations
    (1, 0)
    """

    def __init__(
        self, model: nn.Module, name: str, methods: Collection[str], on_violation: OnViolation
    ) -> None:
        super().__init__(on_violation)
        check_module(model, "watch_inference")
        check_has_hooks([model], "watch_inference")
        for method in methods:
            if not callable(getattr(model, method, None)):
                raise ValueError(_no_method(type(model).__name__, method))  # noqa: TRY004 (a name)
        self.name = name
        self.forwards = 0
        self._serving = Serving(self._new, self._again)
        self._running = Running()
        for method in methods:
            if method == "forward":
                self._hooks.append(model.register_forward_hook(Hook(self._returned)))
            else:
                self._hooks.append(Method(model, method, self._running, self._returned))

    @property
    def violations(self) -> int:
        """How many forwards were wrong."""
        return self._serving.violations

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each kind and line once."""
        return self._serving.ledger.findings()

    def report(self) -> str:
        """Return how many forwards were seen, how many were wrong, and from which lines."""
        return _inference_report(self.name, self.forwards, self.violations, self.findings)

    def _returned(self, module: nn.Module, frame: FrameType, output: object) -> None:
        """Check one forward."""
        __tracebackhide__ = True
        if self._running.depth:
            return
        recording = is_recording()
        recorded = recording and any(tensor.requires_grad for _, tensor in tensors(output))
        with self._lock:
            self.forwards += 1
            self._serving.forward(module, frame, recorded=recorded)
        self._tell()


def _bad_methods(value: str) -> str:
    return (
        "watch_inference(methods=...) takes the names of methods, such as ('forward',), got "
        f"{value}."
    )


def _no_method(model: str, name: str) -> str:
    return f"watch_inference(methods=...): {model} has no method {name!r}."


def _inference_report(
    name: str, forwards: int, violations: int, findings: Sequence[Finding]
) -> str:
    first = f"{name}: {forwards} forwards, {violations} violations"
    return "\n".join([first, *map(row, findings)])


InferenceWatch.__module__ = watch_inference.__module__ = "gradguard"
