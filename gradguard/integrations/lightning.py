"""A Lightning callback that watches ``Trainer.fit``."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# Where the library is not installed (extra `integration`), its classes are unknown.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gradguard.integrations._watching import Watching

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["GradGuardCallback"]


class GradGuardCallback(Watching, Callback):
    """Watch the module and all its optimizers with `gradguard.watch_training` while fit runs.

    The watch begins once the optimizers are made, before the sanity check, and ends with fit, also
    after an exception. Validation, test and predict are Lightning's to put in eval mode, and are
    not watched.

    Args:
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient.
        on_violation: ``"raise"``, ``"warn"``, or a callable that is given the error.

    Attributes:
        watch: the handle of the last fit, with ``report()`` and ``findings``; None before it.

    Example:
        .. code-block:: python

            from gradguard.integrations.lightning import GradGuardCallback

            trainer = lightning.Trainer(callbacks=[GradGuardCallback()])

    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin: the optimizers are made by now."""
        # Where configure_optimizers returns None there is one that holds nothing.
        optimizers = tuple(one for one in trainer.optimizers if any(_parameters(one)))
        if optimizers:
            only: Any = optimizers[0] if len(optimizers) == 1 else optimizers
            self._begin(pl_module, only)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """End with the fit."""
        self.remove()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """End with what ended the fit."""
        self.remove()


def _parameters(optimizer: Optimizer) -> list[bool]:
    return [bool(group["params"]) for group in optimizer.param_groups]
