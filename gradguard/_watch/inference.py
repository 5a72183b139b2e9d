"""The watch over serving: forwards that record a graph, or run in train mode."""

from threading import Lock
from typing import Any

from torch import nn

from gradguard._core.frames import user_frame
from gradguard._core.state import is_dynamo_compiling
from gradguard._graph.parameters import check_module
from gradguard._graph.tensors import tensors
from gradguard._watch import texts
from gradguard._watch.watch import OnViolation, Watch


def watch_inference(model: nn.Module, *, on_violation: OnViolation = "warn") -> "InferenceWatch":
    """Tell of each forward that records a graph or runs in train mode, until it is removed.

    At most one violation a forward; with ``"warn"`` each calling line is told once. A graph is
    seen by what the forward returns: one that is dropped inside is not. What Dynamo inlines is not
    checked: watch the compiled module itself, whose calls are.

    Args:
        model: the module that serves, or its `torch.compile` or parallel wrapper.
        on_violation: ``"warn"`` with a `GradModeWarning` at the calling line, ``"raise"`` a
            `GradModeError` out of the forward, or a callable that is given the error.

    Returns:
        A handle: a context manager with ``remove()``, ``report()`` and the ints ``forwards`` and
        ``violations``.

    Raises:
        TypeError: the model is no module.
        ValueError: `on_violation` is none of the above.

    >>> import torch
    >>> from gradguard import inference_mode, watch_inference
    >>> model = torch.nn.Linear(2, 1).eval()
    >>> with watch_inference(model, on_violation=lambda error: None) as watch:
    ...     with inference_mode():
    ...         _ = model(torch.ones(1, 2))
    ...     _ = model(torch.ones(1, 2))
    >>> watch.forwards, watch.violations
    (2, 1)

    Source: `torch.nn.Module.register_forward_hook`.
    """
    return InferenceWatch(model, on_violation)


class InferenceWatch(Watch):
    """What `watch_inference` returns."""

    def __init__(self, model: nn.Module, on_violation: OnViolation) -> None:
        super().__init__(on_violation)
        check_module(model, "watch_inference")
        self.forwards = 0
        self.violations = 0
        self._lines: dict[str, None] = {}  # an ordered set
        self._lock = Lock()
        self._hooks.append(model.register_forward_hook(_Hook(self)))

    def report(self) -> str:
        """Return how many forwards were seen, how many were wrong, and from which lines."""
        return texts.inference_report(self.forwards, self.violations, list(self._lines))

    def seen(self, module: nn.Module, output: object) -> None:
        """Check one forward."""
        __tracebackhide__ = True
        recorded = any(tensor.requires_grad for _, tensor in tensors(output))
        with self._lock:
            self.forwards += 1
            self.violations += recorded or module.training
        kind = type(module).__name__
        if recorded:
            self._tell(texts.recorded_forward(kind, module.training))
        elif module.training:
            self._tell(texts.train_mode_forward(kind))

    def _tell(self, message: str) -> None:
        __tracebackhide__ = True
        frame = user_frame()
        line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        with self._lock:
            known = line in self._lines
            self._lines[line] = None
        if self.on_violation != "warn" or not known:
            self.violated(message)


class _Hook:
    """The forward hook; a copy or a pickle of the module takes none along."""

    def __init__(self, watch: InferenceWatch) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, _: object, output: object) -> None:
        __tracebackhide__ = True
        if not is_dynamo_compiling():
            self._watch.seen(module, output)

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Any:
    return _unwatched


def _unwatched(module: nn.Module, args: object, output: object) -> None:
    """What a copied module has in the hook's place."""
