"""Numbers that a step keeps for the next one: allowed where they do not depend on the parameters, or are not used."""

from __future__ import annotations

from collections.abc import Sequence
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


def expect_no_memory(objective: TrainingStep, state: ModelState, steps: Sequence[Step]) -> None:
    """Make sure that no step computes with what an earlier one made of the parameters and kept on the module.

    The walk holds such numbers at their recorded values, as it does learning rates, so influence through them would be
    left out. A schedule or a counter does not depend on the parameters and is no such thing.

    Args:
        objective: The opened model.
        state: The state to look at.
        steps: Steps to ask: which of them keeps something of the parameters, and which computes with it.

    Raises:
        UnsupportedRunError: One does; names the attribute.
    """
    carried = sorted({path for step in steps for path in step.micro_batches[-1].carried})
    if not carried:
        return
    with random_state.preserved():
        made = {path for step in steps for path in _made_of_parameters(objective, state, step)}
        for step in steps:
            objective.load(state)
            loss = _take(objective, step)
            for path in sorted(made):
                objective.load(state)
                if not torch.equal(_take(objective, step, path), loss):
                    raise UnsupportedRunError(
                        f"step {step.index}: training_step computes with self.{path}, which an earlier step made of "
                        "its loss or parameters; influence through it would be left out. Expected a step that depends "
                        "on its state and batch alone: compute it within the step, or train without it."
                    )
        objective.load(state)


def _made_of_parameters(objective: TrainingStep, state: ModelState, step: Step) -> list[str]:
    """Return the paths of what a step keeps that is another where the parameters are others."""
    carried = step.micro_batches[-1].carried
    if not carried:
        return []

    def kept() -> dict[str, Any]:
        _take(objective, step)
        places = {path: owner_of(objective.module, path) for path in carried}
        return {path: None if owner is None else _number(owner.get(name)) for path, (owner, name) in places.items()}

    objective.load(state)
    before = kept()
    objective.load(state)
    with torch.no_grad():
        for parameter in objective.parameters:
            parameter.mul_(1.01).add_(0.01)
    moved = kept()
    return [path for path in carried if before[path] != moved[path]]


def _take(objective: TrainingStep, step: Step, path: str = "") -> Tensor:
    """Return the loss of a step's last pass; with another value of an attribute to begin with, if one is named."""
    micro = step.micro_batches[-1]
    batch = objective.batch(step, micro)
    objective.prepare(step, micro)
    if path:
        owner, name = owner_of(objective.module, path)
        if owner is not None and name in owner:
            owner[name] = _another(owner[name])
    random_state.restore(micro.stepped_with)
    return objective.run(step, micro.batch_idx, batch, lossless=micro.without_loss).loss.detach().clone()


def _another(value: Any) -> Any:
    is_number = isinstance(value, (float, Tensor, np.ndarray, np.generic))
    return value * 1.5 + 0.1 if is_number else value  # pyright: ignore[reportOperatorIssue]


def _number(value: Any) -> Any:
    return value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
