"""How many models fit into memory at once, from what one of them is seen to need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.log.records import Step
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.stacked_query import StackedQuery

STATES = 4
"""State, gradient and what an optimizer and a clipping make on the way, in sizes of a state."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one lane needs, in bytes.

    Attributes:
        step: While it takes a step.
        query: While it is asked.
    """

    step: int
    query: int

    def lanes(self, room_bytes: int) -> int:
        """How many take a step at once."""
        return max(2, room_bytes // max(self.step, 1))

    def asked(self, room_bytes: int) -> int:
        """How many are asked at once."""
        return max(1, room_bytes // max(self.query, 1))


def measure_footprint(
    objective: Objective, state: ModelState, step: Step, examples: int, asking: StackedQuery
) -> Footprint:
    """Measure by taking one step's pass and asking the query once, alone.

    Args:
        objective: The opened model.
        state: Where.
        step: The step.
        examples: ``N``: a lane remembers which examples it trains on.
        asking: Asks the query.
    """
    held = sum(v.numel() * v.element_size() for _, _, _, v in state.items())
    micro = step.micro_batches[0]
    objective.load(state)
    with _SavedTensors() as step_pass:
        objective.trace(step, micro, objective.batch(step, micro))
    with _SavedTensors() as query_pass:
        asking.of_state(state)
    batches = max(1, len(asking.data.loader))
    # Backward passes make as much again as forward passes save.
    return Footprint(STATES * held + examples + 2 * step_pass.bytes, held + 2 * query_pass.bytes // batches)


class _SavedTensors:
    """Adds up what autograd saves while it is entered."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda saved: saved)

    def __enter__(self) -> _SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _note(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor
