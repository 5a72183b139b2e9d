"""Grad mode done right: guards, decorators, assertions and watches for PyTorch.

``import gradguard`` does not import torch (the pytest plugin lives in this package, and importing
torch takes seconds): each public name is resolved on its first use, see PEP 562.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradguard._assertions.detached import assert_detached as assert_detached
    from gradguard._assertions.leak_check import leak_check as leak_check
    from gradguard._assertions.mode import assert_grad_enabled as assert_grad_enabled
    from gradguard._assertions.mode import assert_inference_mode as assert_inference_mode
    from gradguard._assertions.mode import assert_no_grad as assert_no_grad
    from gradguard._assertions.parameters import assert_gradients as assert_gradients
    from gradguard._assertions.parameters import assert_parameters_used as assert_parameters_used
    from gradguard._assertions.trainable import assert_trainable as assert_trainable
    from gradguard._compare.compare_modes import compare_modes as compare_modes
    from gradguard._compare.figures import ModeComparison as ModeComparison
    from gradguard._compare.figures import ModeFigures as ModeFigures
    from gradguard._core.abandoned import guards as guards
    from gradguard._core.guard_types import Guard as Guard
    from gradguard._core.guards import enable_grad as enable_grad
    from gradguard._core.guards import inference_mode as inference_mode
    from gradguard._core.guards import no_grad as no_grad
    from gradguard._core.guards import set_grad_enabled as set_grad_enabled
    from gradguard._core.installing import install as install
    from gradguard._core.state import GradState as GradState
    from gradguard._core.state import grad_state as grad_state
    from gradguard._errors import GradLeakError as GradLeakError
    from gradguard._errors import GradModeError as GradModeError
    from gradguard._errors import GradModeWarning as GradModeWarning
    from gradguard._eval.evaluating import evaluating as evaluating
    from gradguard._findings.finding import Finding as Finding
    from gradguard._methods.inference_function import inference_function as inference_function
    from gradguard._methods.inference_method import inference_method as inference_method
    from gradguard._methods.training_method import training_method as training_method
    from gradguard._tasks.asyncio_tasks import isolate_tasks as isolate_tasks
    from gradguard._tasks.carry import carry as carry
    from gradguard._tasks.isolated import isolated as isolated
    from gradguard._trace.switch import Switch as Switch
    from gradguard._trace.trace import Trace as Trace
    from gradguard._trace.trace import trace as trace
    from gradguard._watch.inference import InferenceWatch as InferenceWatch
    from gradguard._watch.inference import watch_inference as watch_inference
    from gradguard._watch.training import TrainingWatch as TrainingWatch
    from gradguard._watch.training import watch_training as watch_training

__version__ = "0.1.0"

_MODULE_OF = {
    "Finding": "_findings.finding",
    "GradLeakError": "_errors",
    "GradModeError": "_errors",
    "GradModeWarning": "_errors",
    "GradState": "_core.state",
    "Guard": "_core.guard_types",
    "InferenceWatch": "_watch.inference",
    "ModeComparison": "_compare.figures",
    "ModeFigures": "_compare.figures",
    "Switch": "_trace.switch",
    "Trace": "_trace.trace",
    "TrainingWatch": "_watch.training",
    "assert_detached": "_assertions.detached",
    "assert_grad_enabled": "_assertions.mode",
    "assert_gradients": "_assertions.parameters",
    "assert_inference_mode": "_assertions.mode",
    "assert_no_grad": "_assertions.mode",
    "assert_parameters_used": "_assertions.parameters",
    "assert_trainable": "_assertions.trainable",
    "carry": "_tasks.carry",
    "compare_modes": "_compare.compare_modes",
    "enable_grad": "_core.guards",
    "evaluating": "_eval.evaluating",
    "grad_state": "_core.state",
    "guards": "_core.abandoned",
    "inference_function": "_methods.inference_function",
    "inference_method": "_methods.inference_method",
    "inference_mode": "_core.guards",
    "install": "_core.installing",
    "isolate_tasks": "_tasks.asyncio_tasks",
    "isolated": "_tasks.isolated",
    "leak_check": "_assertions.leak_check",
    "no_grad": "_core.guards",
    "set_grad_enabled": "_core.guards",
    "trace": "_trace.trace",
    "training_method": "_methods.training_method",
    "watch_inference": "_watch.inference",
    "watch_training": "_watch.training",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        msg = f"module 'gradguard' has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value = getattr(import_module(f"gradguard.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
