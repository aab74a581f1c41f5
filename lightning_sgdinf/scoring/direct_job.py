"""Scores by an estimator that answers without the walk backwards, with what can be checked of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.certificate import Certificate, Trust
from lightning_sgdinf.checks import Plan, check_trust, open_rerun, window_examples
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.estimators import DirectEstimator
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.scoring.result import JobResult, answer_provenance
from lightning_sgdinf.scoring.settings import Settings

TRUST_EXAMPLES = 12
"""Examples that a full certificate really leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectJob:
    """Scores of one run and query by a `DirectEstimator`.

    Attributes:
        settings: How to go about it.
        run: Record, model and data.
        query: What is asked.
        estimator: How to answer.
    """

    settings: Settings
    run: OpenedRun
    query: BoundQuery
    estimator: DirectEstimator

    def result(self) -> JobResult:
        """Ask, check, and put the result together.

        Raises:
            NonFiniteError: A score is NaN or infinite; names the example.
        """
        asked, _ = self.query.at_model(self.run)
        notes = list(self.run.audit().notes)
        estimate = self.estimator.estimate(self.run, self.query)
        notes += estimate.notes
        values = estimate.values.to("cpu", torch.float64)
        if not bool(torch.isfinite(values).all()):
            wrong = int((~torch.isfinite(values)).any(dim=1).nonzero()[0])
            raise NonFiniteError(f"the score of training example {wrong} is {values[wrong].tolist()}")
        began = time.perf_counter()
        trust = self._trust(values, notes)
        return JobResult(
            values=values,
            queries=self.query.names,
            better=(self.query.query.better,) * len(asked),
            certificate=Certificate(
                level=self.settings.certificate,
                trust=trust,
                seconds=time.perf_counter() - began if trust else 0.0,
                notes=tuple(notes),
            ),
            provenance=answer_provenance(self.estimator, self.query, asked),
        )

    def _trust(self, values: Tensor, notes: list[str]) -> Trust | None:
        """Leave sampled examples out of the whole run: such an estimate has no part to compare a window with."""
        log = self.run.log
        if self.settings.certificate == "off":
            return None
        if self.settings.certificate == "fast" or 0 not in log.state_indices:
            notes.append(
                "Trust was not checked: this estimate is of the whole run, so its examples have to be left out of all "
                "of it; certificate='full' does that, and needs the first state in the log."
            )
            return None
        plan = Plan(first_step=0, gradient_examples=0, trust_examples=TRUST_EXAMPLES)
        with open_rerun(self.run, self.query, first_step=0, start=log.state(0)) as rerun:
            return check_trust(rerun, values, plan, window_examples(log.steps(0, len(log))))
