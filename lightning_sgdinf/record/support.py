"""What can be recorded, and what can be replayed, of a run: judged before it starts."""

from __future__ import annotations

from typing import Any

import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.record.snapshots import Keep, LastEpochs, StateReader

_CLOSURE_OPTIMIZERS = ("LBFGS",)

_GRADIENT_HOOKS = (
    "backward",
    "configure_gradient_clipping",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "optimizer_zero_grad",
)


def is_tuner_search(trainer: Any) -> bool:
    """Whether this fit is a learning-rate or batch-size search that never trains."""
    return any(getattr(callback, "_early_exit", False) for callback in trainer.callbacks)


def check_keep(keep: Keep, max_epochs: int | None) -> None:
    """Refuse a policy that the Trainer's settings make meaningless.

    Raises:
        ConfigurationError: If ``last_epochs(n)`` meets a Trainer without ``max_epochs``.
    """
    if isinstance(keep, LastEpochs) and (max_epochs is None or max_epochs < 0):
        raise ConfigurationError(
            f"keep={str(keep)!r} counts from the Trainer's max_epochs, which is {max_epochs}. Set max_epochs, or use "
            "keep='every(k)'."
        )


def impossible_to_record(trainer: Any) -> str:
    """Why nothing at all can be recorded, as a sentence without full stop; empty if something can."""
    if trainer.world_size > 1:
        return (
            f"training runs on {trainer.world_size} processes, and only single-process runs can be recorded. "
            "Train with devices=1"
        )
    return ""


def impossible_optimizers(trainer: Any) -> str:
    """Why the optimizers cannot be recorded, as a sentence without full stop; empty if they can."""
    if len(trainer.optimizers) != 1:
        return (
            f"the run has {len(trainer.optimizers)} optimizers, and only runs with one can be recorded. "
            "Train with a single optimizer"
        )
    optimizer = trainer.optimizers[0]
    if not isinstance(optimizer, torch.optim.Optimizer):
        return (
            f"the optimizer is a {type(optimizer).__qualname__}, which is no torch.optim.Optimizer and has no step "
            "hooks. "
            "Derive it from torch.optim.Optimizer"
        )
    for group in optimizer.param_groups:
        rate = group.get("lr", 0.0)
        if (
            isinstance(rate, bool)
            or not isinstance(rate, (int, float, torch.Tensor))
            or (isinstance(rate, torch.Tensor) and rate.numel() != 1)
        ):
            return f"the optimizer's learning rate is {rate!r}, which is not a number. Use a float or a 0-d tensor"
    return ""


def impossible_to_replay(module: Any, optimizer: torch.optim.Optimizer, reader: StateReader) -> list[str]:
    """Why the run cannot be replayed although it can be recorded, as sentences without full stop."""
    reasons = []
    if not module.automatic_optimization:
        reasons.append(MANUAL_OPTIMIZATION)
    if any(base.__name__ in _CLOSURE_OPTIMIZERS for base in type(optimizer).__mro__):
        reasons.append(SEVERAL_EVALUATIONS)
    if reader.foreign:
        reasons.append(
            f"the optimizer holds {reader.foreign} parameters that are none of the module's, so they have no name. "
            "Register them in the LightningModule"
        )
    return reasons


SEVERAL_EVALUATIONS = (
    "the optimizer evaluates the loss several times per step. Use one that evaluates it once, such as SGD or Adam"
)

MANUAL_OPTIMIZATION = (
    "the module optimizes manually, so the gradient need not be that of what training_step returns. "
    "Use automatic optimization"
)


def gradient_overrides(module: Any) -> list[str]:
    """Names of the module's own hooks that may do something to gradients or steps that is not in the record."""
    return [name for name in _GRADIENT_HOOKS if name in vars(module) or not _is_lightnings(type(module), name)]


def _is_lightnings(kind: type, name: str) -> bool:
    owner = next(base for base in kind.__mro__ if name in vars(base))
    return owner.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
