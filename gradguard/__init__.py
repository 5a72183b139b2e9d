"""Grad mode done right: guards, decorators, assertions and watches for PyTorch.

``import gradguard`` does not import torch (the pytest plugin lives in this package, and importing
torch takes seconds): each public name is resolved on its first use, see PEP 562.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradguard._assertions import assert_grad_enabled as assert_grad_enabled
    from gradguard._assertions import assert_inference_mode as assert_inference_mode
    from gradguard._assertions import assert_no_grad as assert_no_grad
    from gradguard._carry import carry as carry
    from gradguard._compare import compare_modes as compare_modes
    from gradguard._detached import assert_detached as assert_detached
    from gradguard._errors import GradLeakError as GradLeakError
    from gradguard._errors import GradModeError as GradModeError
    from gradguard._errors import GradModeWarning as GradModeWarning
    from gradguard._evaluating import evaluating as evaluating
    from gradguard._guards import enable_grad as enable_grad
    from gradguard._guards import inference_mode as inference_mode
    from gradguard._guards import no_grad as no_grad
    from gradguard._guards import set_grad_enabled as set_grad_enabled
    from gradguard._isolated import isolated as isolated
    from gradguard._leak_check import leak_check as leak_check
    from gradguard._methods import inference_method as inference_method
    from gradguard._parameters import assert_gradients as assert_gradients
    from gradguard._parameters import assert_parameters_used as assert_parameters_used
    from gradguard._parameters import assert_trainable as assert_trainable
    from gradguard._stack import guards as guards
    from gradguard._state import GradState as GradState
    from gradguard._state import grad_state as grad_state
    from gradguard._tasks import isolate_tasks as isolate_tasks
    from gradguard._trace import trace as trace
    from gradguard._training import training_method as training_method
    from gradguard._watch_inference import watch_inference as watch_inference
    from gradguard._watch_training import watch_training as watch_training

__version__ = "0.1.0"

_MODULE_OF = {
    "GradLeakError": "_errors",
    "GradModeError": "_errors",
    "GradModeWarning": "_errors",
    "GradState": "_state",
    "assert_detached": "_detached",
    "assert_grad_enabled": "_assertions",
    "assert_gradients": "_parameters",
    "assert_inference_mode": "_assertions",
    "assert_no_grad": "_assertions",
    "assert_parameters_used": "_parameters",
    "assert_trainable": "_parameters",
    "carry": "_carry",
    "compare_modes": "_compare",
    "enable_grad": "_guards",
    "evaluating": "_evaluating",
    "grad_state": "_state",
    "guards": "_stack",
    "inference_method": "_methods",
    "inference_mode": "_guards",
    "isolate_tasks": "_tasks",
    "isolated": "_isolated",
    "leak_check": "_leak_check",
    "no_grad": "_guards",
    "set_grad_enabled": "_guards",
    "trace": "_trace",
    "training_method": "_training",
    "watch_inference": "_watch_inference",
    "watch_training": "_watch_training",
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
