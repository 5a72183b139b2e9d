"""Which modules run otherwise in train mode than in eval mode."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # the one base of all that keep statistics
from torch.nn.modules.dropout import _DropoutNd  # the one base of all dropouts


def depends_on_mode(module: nn.Module) -> bool:
    """Tell whether a module's own forward differs between train and eval mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, _NormBase):
        return module.track_running_stats and module.running_mean is not None
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.RReLU)):
        return isinstance(module, nn.RReLU) or module.dropout > 0
    return not type(module).__module__.startswith("torch.") and _reads_training(type(module))


def acts(module: nn.Module) -> bool:
    """Tell whether a Dropout or BatchNorm acts as in training."""
    kinds = (_DropoutNd, _NormBase, nn.RNNBase, nn.MultiheadAttention)
    return module.training and isinstance(module, kinds) and depends_on_mode(module)


_reads: dict[type, bool] = {}


def _reads_training(kind: type) -> bool:
    """Tell whether the class reads its ``training`` flag in what its forward runs."""
    known = _reads.get(kind)
    if known is None:
        names = (name for each in kind.__mro__ if each is not nn.Module for name in vars(each))
        codes = (getattr(getattr(kind, name, None), "__code__", None) for name in names)
        known = _reads[kind] = any(
            "training" in code.co_names
            for code in codes
            if code is not None and code.co_name not in ("train", "eval")
        )
    return known


def is_norm(module: Any) -> bool:
    """Tell whether a module keeps running statistics."""
    return isinstance(module, _NormBase)
