"""Scores by an estimator that answers without the walk backwards, with what can be checked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.query_gradient import gradient_of, value_of
from lightning_sgdinf.certificate import Certificate, Trust
from lightning_sgdinf.checks.rerun import Plan, check_trust, open_rerun, stopwatch, window_examples
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.estimators.direct import DirectEstimator, Question
from lightning_sgdinf.query import Query, ValidationData
from lightning_sgdinf.replay.lightning_host import validation_context
from lightning_sgdinf.replay.weight_audit import attribution, audit_loss
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring.walk_job import Opened, Settings, averaged_model, provenance

TRUST_EXAMPLES = 12
"""How many examples a full certificate really leaves out."""


@dataclass(frozen=True, slots=True)
class DirectJob:
    """Scores for one record, query and `DirectEstimator`, once everything is open.

    Attributes:
        settings: How to go about it.
        opened: Record, model and data.
        query: What is asked.
        estimator: How to answer.
        data: Validation data.
    """

    settings: Settings
    opened: Opened
    query: Query
    estimator: DirectEstimator
    data: ValidationData

    def scores(self, clock: Callable[[], float], labels: tuple[str, ...] | None) -> Scores:
        """Ask, check, and put the result together.

        Raises:
            NonFiniteError: A score is NaN or infinite; names the example.
        """
        log, objective = self.opened.log, self.opened.objective
        context = validation_context(self.opened.host, log.header)
        final = log.state(len(log))
        model = averaged_model(final, log)
        asked, adjoint = gradient_of(objective, model, self.query, self.data, context)
        last = log.step(len(log) - 1)
        audit_loss(objective, final, last, log.step(0))
        notes = [note] if (note := attribution(objective, final, last)) else []
        size = self.opened.source.size
        answer = self.estimator.answer(
            Question(
                log=log,
                objective=objective,
                examples=size,
                model=model,
                gradient=adjoint.params,
                value=lambda state: value_of(objective, state, self.query, self.data, context),
                room_bytes=self.settings.room_bytes,
            )
        )
        notes += answer.notes
        values = answer.values.to("cpu", torch.float64)
        if not bool(torch.isfinite(values).all()):
            wrong = int((~torch.isfinite(values)).any(dim=1).nonzero()[0])
            raise NonFiniteError(f"the score of training example {wrong} is {values[wrong].tolist()}")
        since = stopwatch()
        trust = self._trust(values, notes)
        return Scores(
            values=values,
            queries=self.query.names(self.data),
            labels=labels,
            certificate=Certificate(
                level=self.settings.certificate, trust=trust, seconds=since() if trust else 0.0, notes=tuple(notes)
            ),
            better=(self.query.better,) * len(adjoint.params),
            provenance=provenance(
                self.opened,
                self.settings.precision,
                clock(),
                estimator=repr(self.estimator),
                query=repr(self.query),
                query_values=asked.tolist(),
            ),
        )

    def _trust(self, values: Tensor, notes: list[str]) -> Trust | None:
        """Sampled examples left out of the whole run: such an estimate has no part that a window could be held
        against."""
        log, settings = self.opened.log, self.settings
        if settings.certificate == "off":
            return None
        if settings.certificate == "fast" or 0 not in log.state_indices:
            notes.append(
                "Trust was not checked: this estimate is of the whole run, so its examples have to be left out of all "
                "of it; certificate='full' does that, and needs the first state in the log."
            )
            return None
        plan = Plan(first_step=0, gradient_examples=0, trust_examples=TRUST_EXAMPLES)
        with open_rerun(
            log,
            self.opened.objective,
            self.opened.host,
            self.query,
            self.data,
            validation_context(self.opened.host, log.header),
            first_step=0,
            start=log.state(0),
            examples=self.opened.source.size,
            tap=settings.tap,
        ) as rerun:
            return check_trust(rerun, values, plan, window_examples(log.steps(0, len(log))))
