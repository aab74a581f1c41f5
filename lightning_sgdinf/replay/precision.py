"""The precision that a run's numbers are rounded in."""

from __future__ import annotations

import torch

from lightning_sgdinf import random_state
from lightning_sgdinf.batch_structure import map_tensors
from lightning_sgdinf.dtypes import dtype_name, tensors_made_in
from lightning_sgdinf.log import Step
from lightning_sgdinf.replay.training_step import TrainingStep
from lightning_sgdinf.state import ModelState

ROUNDING = 1e-13
"""Relative difference of two losses in float64 that is none."""


def precision_of(objective: TrainingStep, state: ModelState, step: Step, recorded: str) -> str:
    """Return the precision of a run's rounding: the coarsest that its training computes in.

    A module with parameters in float64 may ask for float32 on the way (``logits.float()``, a norm that is computed in
    float32): then its loss is another one where float64 takes the place of that.

    Args:
        objective: The opened model.
        state: Where to look.
        step: A step of the run.
        recorded: What the Trainer was told, such as ``"32-true"`` or ``"16-mixed"``.

    Returns:
        The name of a floating-point type, or of a mixed precision.
    """
    if "mixed" in recorded:
        return recorded
    dtype = objective.parameters[0].dtype
    if dtype != torch.float64 or objective.dtype is not None:
        return dtype_name(dtype)
    objective.load(state)
    plain, wide = (_loss(objective, step, made_in) for made_in in (None, torch.float64))
    return "float64" if abs(plain - wide) <= ROUNDING * abs(wide) else "float32"


def _loss(objective: TrainingStep, step: Step, made_in: torch.dtype | None) -> float:
    micro = step.first_pass
    buffers = objective.read_buffers()
    with random_state.preserved():
        try:
            batch = map_tensors(objective.batch(step, micro), torch.clone)
            objective.prepare(step, micro)
            random_state.restore(micro.stepped_with)
            with tensors_made_in(made_in):
                loss = objective.run(step, micro.batch_idx, batch, lossless=micro.without_loss).loss
            return float(loss.detach())
        finally:
            with torch.no_grad():
                objective.load_buffers(buffers)
