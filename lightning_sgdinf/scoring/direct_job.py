"""Scores by an estimator that answers without the walk backwards, with what can be checked of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.certificate import Certificate, Trust
from lightning_sgdinf.checks import Reached, check_beside, check_trust, direct_allowance, full_allowance
from lightning_sgdinf.errors import NonFiniteError, UnsupportedRunError
from lightning_sgdinf.estimators import DirectEstimator
from lightning_sgdinf.replay import OpenedRun, row_warnings
from lightning_sgdinf.scoring.result import JobResult, answer_provenance
from lightning_sgdinf.scoring.settings import Settings
from lightning_sgdinf.truth import clock, first_drawn


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
        asked = self.query.value(self.run.model)
        self.run.audit()
        notes = [*self.run.remarks]
        began = clock(self.run.host.device)
        estimate = self.estimator.estimate(self.run, self.query)
        elapsed = clock(self.run.host.device) - began
        notes += estimate.notes
        values = estimate.values.to("cpu", torch.float64)
        if not bool(torch.isfinite(values).all()):
            wrong = int((~torch.isfinite(values)).any(dim=1).nonzero()[0])
            raise NonFiniteError(f"the score of training example {wrong} is {values[wrong].tolist()}")
        began = time.perf_counter()
        trust = None if estimate.meaning else self._trust(values, elapsed, notes)
        further, more, unjudged = ([], [], list(row_warnings(self.run.objective)))
        if self.settings.certificate != "off":
            further, more, unjudged = check_beside(self.run, self.query, asked)
        return JobResult(
            values=values,
            queries=self.query.names,
            better=(self.query.query.better,) * len(asked),
            standard_error=estimate.standard_error,
            certificate=Certificate(
                level=self.settings.certificate,
                trust=trust,
                further=tuple(further),
                unjudged=tuple(unjudged),
                seconds=time.perf_counter() - began if trust else 0.0,
                notes=(*notes, *more),
                meaning=estimate.meaning,
            ),
            provenance=answer_provenance(self.estimator, self.query, asked),
        )

    def _trust(self, values: Tensor, elapsed: float, notes: list[str]) -> Trust | None:
        """Leave examples out of the whole run: such an estimate has no part to compare a window with."""
        if self.settings.certificate == "off":
            return None
        allowance = full_allowance() if self.settings.certificate == "full" else direct_allowance(elapsed)
        try:
            first = first_drawn(self.run.log, self.run.examples, first_step=0, last_step=len(self.run.log))
        except UnsupportedRunError as error:  # the run cannot be taken again from its beginning
            notes.append(f"Trust was not measured: {error}")
            return None
        trust, more = check_trust(self.run, self.query, {0: Reached(values[:, 0], torch.as_tensor(first))}, allowance)
        notes += more
        return trust
