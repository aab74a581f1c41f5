"""What an estimator is that does not walk backwards: it is shown the whole run and its end, and answers at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A recorded run, opened, and what is asked of its final model.

    Attributes:
        log: The record.
        objective: The opened model.
        examples: ``N``.
        model: The final model: with averaged weights, if the run averaged them.
        gradient: Of the queries in its parameters, ``[Q, P]``.
        value: The queries' values at any state, float64 ``[Q]``.
        room_bytes: How much memory the estimate may take, in bytes.
    """

    log: Trajectory
    objective: Objective
    examples: int
    model: ModelState
    gradient: Tensor
    value: Callable[[ModelState], Tensor]
    room_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What a `DirectEstimator` found.

    Attributes:
        values: Estimated change of each query had the example been left out, ``[N, Q]``.
        notes: Sentences a reader must know.
    """

    values: Tensor
    notes: tuple[str, ...] = ()


@runtime_checkable
class DirectEstimator(Protocol):
    """Estimates the change of the queries for every example without the walk backwards."""

    def answer(self, question: Question) -> Answer:
        """The estimate.

        Args:
            question: The run and the queries' gradient at its end.
        """
        ...
