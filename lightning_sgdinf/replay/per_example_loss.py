"""Losses of examples that the user computes, in place of a loss whose rows are looked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import Step

PerExampleLoss: TypeAlias = Callable[[Any, Any, Any], Tensor]
"""Is given the module, a batch and its index; returns the loss of each example, ``[B]``, whose mean is the step's."""


def ask_module(module: Any, batch: Any, batch_idx: Any) -> Tensor:
    """Return what the module's own ``per_example_loss`` says."""
    return module.per_example_loss(batch, batch_idx)


def divisor(weights: Tensor, reduced: bool) -> Tensor | int:
    """Return what the sum of the losses is divided by: the examples, or the sum of their weights; never 0."""
    if not reduced:
        return len(weights)
    left = weights.sum()
    return torch.where(left > 0, left, torch.ones_like(left))


def expect_one_each(losses: Any, count: int, step: Step) -> None:
    """Refuse losses that are not one per example: multiplied by weights they would broadcast."""
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise UntappedLossError(
            f"step {step.index}: per_example_loss must return the loss of each of {count} examples, shape [{count}], "
            f"got {got}; take the mean over what else it has."
        )
