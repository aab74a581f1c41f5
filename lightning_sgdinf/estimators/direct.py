"""The protocol of estimators that do not walk backwards: given run and query, they return all values at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True)
class Estimate:
    """The result of a `DirectEstimator`.

    Attributes:
        values: Estimated change of each query had the example been left out, ``[N, Q]``.
        notes: Sentences a reader must know.
        standard_error: Of sampling, ``[N, Q]``; ``None`` where nothing was sampled.
        meaning: A sentence on what the values are, where they are no estimate of the change by leaving an example out
            alone and cannot be compared with it: an average over what else was there, say. Empty where they are one.
    """

    values: Tensor
    notes: tuple[str, ...] = ()
    standard_error: Tensor | None = None
    meaning: str = ""


@runtime_checkable
class DirectEstimator(Protocol):
    """Estimates the change of the queries for every example without the walk backwards."""

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Return the estimated changes.

        Args:
            run: The recorded run; ``run.memory_bytes`` bounds what may be held.
            query: The queries: ``query.at_model(run)`` gives their values and their adjoint at the final model.
        """
        ...
