"""Estimators written for an earlier release, which answer a `Question`; gone with the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.estimators.direct import Estimate
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.replay import Objective, OpenedRun
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A recorded run and what is asked of its final model, now `OpenedRun` and `BoundQuery`.

    Attributes:
        log: The record.
        objective: The opened model.
        examples: ``N``.
        model: The final model.
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
class AnsweringEstimator:
    """An estimator with a method ``answer(question)``, as a `DirectEstimator`.

    Attributes:
        inner: The estimator.
    """

    inner: Any

    def __repr__(self) -> str:
        return repr(self.inner)

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Estimate by the method ``answer``."""
        warn_renamed(f"{type(self.inner).__name__}.answer(question)", "estimate(run, query)")
        question = Question(
            log=run.log,
            objective=run.objective,
            examples=run.examples,
            model=run.model,
            gradient=query.at_model(run)[1].params,
            value=query.value,
            room_bytes=run.memory_bytes,
        )
        return self.inner.answer(question)
