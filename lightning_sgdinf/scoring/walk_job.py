"""One walk with its checks, from opened record to `Scores`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.compiled import CompiledSteps
from lightning_sgdinf.adjoint.query_gradient import gradient_of
from lightning_sgdinf.certificate import Certificate, Level
from lightning_sgdinf.checkpointing import ROOM_BYTES, states_in
from lightning_sgdinf.checks.rerun import (
    Plan,
    check_gradient,
    check_trust,
    fast_plan,
    open_rerun,
    stopwatch,
    window_examples,
)
from lightning_sgdinf.estimators import Estimator
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.query import Query, ValidationData
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.lightning_host import validation_context
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.row_shards import RowShards, rows_are_separate
from lightning_sgdinf.replay.weight_audit import attribution, audit_loss
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring.walk import Tally, Walk
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A record and the model and data it came from, together and ready.

    Attributes:
        log: The record.
        objective: The model's training step.
        host: What stands around it.
        source: Gives recorded batches.
        dataset: The training set.
    """

    log: Trajectory
    objective: Objective
    host: Host
    source: BatchSource
    dataset: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an `InfluenceRunner` was set; its constructor documents the fields."""

    precision: str | None = None
    certificate: Level = "fast"
    tap: str | None = None
    per_epoch: bool = False
    room_bytes: int = ROOM_BYTES
    progress: bool = True
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating-point precision to compute in, if not the recorded one."""
        return torch.float64 if self.precision == "64-true" else None


class Job:
    """Scores for one record, query and estimator, once everything is open.

    Args:
        settings: How to go about it.
        opened: Record, model and data.
        query: What is asked.
        estimator: How to answer.
        data: Validation data.
        team: This process among several that work together, if there are several.
    """

    def __init__(
        self,
        settings: Settings,
        opened: Opened,
        query: Query,
        estimator: Estimator,
        data: ValidationData,
        team: RowShards | None = None,
    ) -> None:
        self.settings, self.opened, self.query, self.estimator, self.data, self.team = (
            settings,
            opened,
            query,
            estimator,
            data,
            team,
        )
        self.log, self.objective = opened.log, opened.objective
        self.context = validation_context(opened.host, opened.log.header)
        self.examples = opened.source.size
        self.first = estimator.first_step(opened.log)
        self.notes: list[str] = []
        self.result = Certificate(level=settings.certificate)
        self.check_seconds = 0.0

    def scores(self, clock: Callable[[], float], labels: tuple[str, ...] | None) -> Scores:
        """Walk, check, and put the result together."""
        final = self.log.state(len(self.log))
        values, adjoint = self.query_gradient(averaged_model(final, self.log), averaged=self.log.average or ())
        self.audit(final)
        own, share = self._split(adjoint, final)
        epochs = self.log.step(len(self.log) - 1).epoch + 1 if self.settings.per_epoch else 0
        tally = self._walk(adjoint.columns(own), final, epochs, own, share)
        if tally.rebuilt:
            self.notes.append(
                f"{tally.rebuilt} states were rebuilt by doing recorded steps again; each matched its checksum."
            )
        certificate = replace(
            self.result,
            step_replay=tally.comparison.value(),
            amplification=tally.growth.value(self.first) if self.estimator.exact else None,
            seconds=self.check_seconds,
            notes=tuple(self.notes),
        )
        return Scores(
            values=self._together(tally.scores, own, share),
            queries=self.query.names(self.data),
            labels=labels,
            per_epoch=None if tally.per_epoch is None else self._together(tally.per_epoch, own, share),
            certificate=certificate,
            better=(self.query.better,) * adjoint.queries,
            provenance=provenance(
                self.opened,
                self.settings.precision,
                clock(),
                estimator=repr(self.estimator),
                query=repr(self.query),
                query_values=values.tolist(),
            ),
        )

    def _walk(self, adjoint: Adjoint, final: ModelState, epochs: int, own: slice, share: RowShards | None) -> Tally:
        plan = self.plan()
        compiled = CompiledSteps(self.objective) if self.settings.compile else None
        with self._progress() as bar:

            def on_step(t: int, before: ModelState, tally: Tally) -> None:
                bar.update()
                if plan is not None and t == plan.first_step and own.start == 0:
                    self.check(plan, before, tally.scores if share is None else share.all_sum(tally.scores.clone()))

            walk = Walk(
                log=self.log,
                objective=self.objective,
                estimator=self.estimator,
                query_at=lambda state: self.query_gradient(state)[1].columns(own),
                share=share,
                room=self._room(final),
                compare=self._compares(),
                compiled=compiled,
                on_step=on_step,
            )
            tally = walk.run(adjoint, examples=self.examples, epochs=epochs)
        if compiled is not None and compiled.note:
            self.notes.append(compiled.note)
        return tally

    def _compares(self) -> bool:
        """Whether rebuilt states are held against recorded ones: rounding decides what an optimizer like Adam does with
        a gradient that is zero but for it (a bias before BatchNorm), so only in the precision of the run."""
        if self.settings.certificate == "off":
            return False
        recorded = {dtype for _, _, dtype in self.log.header.parameters}
        if self.settings.precision == "64-true" and recorded != {"float64"}:
            self.notes.append(
                "Steps were not held against the record: the walk computes in float64, the run in "
                f"{', '.join(sorted(recorded))}."
            )
            return False
        return True

    def _split(self, adjoint: Adjoint, final: ModelState) -> tuple[slice, RowShards | None]:
        """This process's queries, and its share of each batch's rows: one of the two is everything."""
        everything = slice(0, adjoint.queries)
        if self.team is None:
            return everything, None
        if adjoint.queries >= self.team.world:
            return self.team.rows(adjoint.queries), None
        if rows_are_separate(self.objective, self.team, final, self.log.step(len(self.log) - 1)):
            return everything, self.team
        self.notes.append(
            "Rows of a batch see each other in this model (BatchNorm, dropout, class weights ...), so every process "
            "did the whole walk."
        )
        return everything, None

    def _together(self, values: Tensor, own: slice, share: RowShards | None) -> Tensor:
        """Every process's part of ``[..., N, own]`` as ``[..., N, Q]``."""
        if self.team is None:
            return values
        if share is not None:
            return share.all_sum(values)
        if len(self.query.names(self.data)) < self.team.world:
            return values
        whole = torch.zeros(*values.shape[:-1], len(self.query.names(self.data)), dtype=values.dtype)
        whole[..., own] = values
        return self.team.all_sum(whole)

    def query_gradient(self, state: ModelState, *, averaged: Collection[str] = ()) -> tuple[Tensor, Adjoint]:
        """Values and adjoint of the queries at a state."""
        return gradient_of(self.objective, state, self.query, self.data, self.context, averaged=averaged)

    def audit(self, final: ModelState) -> None:
        """Make sure that example weights reach the whole loss, before the first score."""
        last = self.log.step(len(self.log) - 1)
        audit_loss(self.objective, final, last, self.log.step(self.first))
        if note := attribution(self.objective, final, last):
            self.notes.append(note)

    def plan(self) -> Plan | None:
        """What will be re-run."""
        if self.settings.certificate == "off" or self.first == len(self.log):
            return None
        plan = fast_plan(self.log, self.first)
        if self.settings.certificate == "full":
            plan = Plan(first_step=self.first, gradient_examples=4, trust_examples=12)
        return plan

    def check(self, plan: Plan, before: ModelState, scores: Tensor) -> None:
        """Re-run the window and hold the walk's scores so far against it."""
        clock = stopwatch()
        if self.estimator.state_for(plan.first_step, self.log) != plan.first_step:
            if plan.first_step not in self.log.state_indices:
                self.notes.append(
                    f"Trust was not checked: a re-run would start from state {plan.first_step}, which the log does not "
                    "store."
                )
                return
            before = self.log.state(plan.first_step)
        with open_rerun(
            self.log,
            self.objective,
            self.opened.host,
            self.query,
            self.data,
            self.context,
            first_step=plan.first_step,
            start=before,
            examples=self.examples,
            tap=self.settings.tap,
        ) as rerun:
            gradient = check_gradient(rerun, scores, plan) if self.estimator.exact else None
            ids = window_examples(self.log.steps(plan.first_step, len(self.log)))
            trust = check_trust(rerun, scores, plan, ids)
        self.objective.forget_modes()
        self.result = replace(self.result, gradient_check=gradient, trust=trust)
        self.check_seconds += clock()

    def _progress(self) -> Any:
        return tqdm(
            total=len(self.log) - self.first,
            desc="replaying backwards",
            unit=" steps",
            disable=not self.settings.progress or (self.team is not None and self.team.rank > 0),
            dynamic_ncols=True,
            file=sys.stderr,
            leave=False,
        )

    def _room(self, state: ModelState) -> int:
        size = sum(v.numel() * v.element_size() for _, _, _, v in state.items())
        return states_in(self.settings.room_bytes, size)


def provenance(opened: Opened, precision: str | None, seconds: float, **more: Any) -> dict[str, Any]:
    """Where scores come from: digests and reprs by which a result can be told from any other."""
    log = opened.log
    return {
        "log": log.digest,
        "run": log.header.run_id,
        "steps": len(log),
        "of_average": log.average is not None,
        "precision": precision or log.header.precision,
        "device": str(opened.host.device),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "log_bytes": getattr(log, "size_bytes", 0),
        **more,
    }


def averaged_model(final: ModelState, log: Trajectory) -> ModelState:
    """The final model as the fit left it: with the averaged weights, if a callback averaged them."""
    average = log.average
    if average is None:
        return final
    return replace(
        final,
        params={n: average.get(n, v) for n, v in final.params.items()},
        buffers={n: average.get(n, v) for n, v in final.buffers.items()},
    )
