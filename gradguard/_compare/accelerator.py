"""The accelerator of this process, where there is one."""

from typing import Any

import torch


def accelerator() -> Any:
    """Return the module of the current accelerator (`torch.cuda`, `torch.xpu`, …), or None."""
    if not torch.accelerator.is_available():
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())
