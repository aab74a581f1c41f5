"""Numbers that a step keeps for the next one: allowed where they do not depend on the parameters, or are not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import Step
from lightning_sgdinf.replay.attributes import owner_of
from lightning_sgdinf.replay.training_step import TrainingStep
from lightning_sgdinf.state import ModelState


def expect_no_memory(objective: TrainingStep, state: ModelState, step: Step) -> None:
    """Make sure that no step computes with what an earlier one made of the parameters and kept on the module.

    The walk holds such numbers at their recorded values, as it does learning rates, so influence through them would be
    left out. A schedule or a counter does not depend on the parameters and is no such thing.

    Args:
        objective: The opened model.
        state: The state to look at.
        step: A late step.

    Raises:
        UnsupportedRunError: One does; names the attribute.
    """
    micro = step.micro_batches[-1]
    if not micro.carried:
        return

    def take(path: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Return the loss, and what was kept; with another value of an attribute to begin with, if one is named."""
        batch = objective.batch(step, micro)
        objective.prepare(step, micro)
        if path:
            owner, name = owner_of(objective.module, path)
            if owner is not None and name in owner:
                owner[name] = _another(owner[name])
        random_state.restore(micro.stepped_with)
        loss = objective.run(step, micro.batch_idx, batch).loss.detach().clone()
        kept = {}
        for one in micro.carried:
            owner, name = owner_of(objective.module, one)
            kept[one] = None if owner is None else _number(owner.get(name))
        return loss, kept

    with random_state.preserved():
        objective.load(state)
        loss, kept = take()
        objective.load(state)
        with torch.no_grad():
            for parameter in objective.parameters:
                parameter.mul_(1.01).add_(0.01)
        moved = take()[1]
        for path in micro.carried:
            if kept[path] == moved[path]:
                continue
            objective.load(state)
            if not torch.equal(take(path)[0], loss):
                raise UnsupportedRunError(
                    f"step {step.index}: training_step computes with self.{path}, which the step before made of its "
                    "loss or parameters; influence through it would be left out. Expected a step that depends on its "
                    "state and batch alone: compute it within the step, or train without it."
                )
        objective.load(state)


def _another(value: Any) -> Any:
    is_number = isinstance(value, (float, Tensor, np.ndarray, np.generic))
    return value * 1.5 + 0.1 if is_number else value  # pyright: ignore[reportOperatorIssue]


def _number(value: Any) -> Any:
    return value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
