"""Scores by a walk backwards, with its checks."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_sgdinf.adjoint import Adjoint, BoundQuery, CompiledSteps, rule_for
from lightning_sgdinf.certificate import Certificate, Check, GradientCheck, Trust
from lightning_sgdinf.checkpointing import states_in
from lightning_sgdinf.checks import (
    Plan,
    Reached,
    SwapComparison,
    check_gradient,
    check_logged_query,
    check_trust,
    fast_allowance,
    fast_plan,
    full_allowance,
    open_rerun,
    window_lengths,
)
from lightning_sgdinf.estimators import Estimator
from lightning_sgdinf.replay import OpenedRun, RowShards, find_vanishing, row_warnings, rows_are_separate
from lightning_sgdinf.scoring.rebuilding_checks import rebuilding_checks
from lightning_sgdinf.scoring.result import JobResult, answer_provenance
from lightning_sgdinf.scoring.settings import Settings
from lightning_sgdinf.scoring.walk import Tally, Walk
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth import clock


@dataclass(slots=True)
class Findings:
    """Results of the checks of a walk, on the way.

    Attributes:
        notes: Sentences a reader must know.
        gradient: See `GradientCheck`.
        trust: See `Trust`.
        further: Other checks.
        reached: What the walk knew on the way, of the first query, by step.
        unjudged: Sentences on what a check could not judge.
        seconds: Wall time the re-runs took.
        cost: The same by `clock`.
    """

    notes: list[str]
    gradient: GradientCheck | None = None
    trust: Trust | None = None
    further: list[Check] = field(default_factory=list)
    reached: dict[int, Reached] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """This process's part of a walk: everything, some of the queries, or some rows of each batch.

    Attributes:
        columns: Its queries.
        shards: Its rows, where the rows are sharded.
        team: All processes, where they are several.
        queries: ``Q`` of all processes.
    """

    columns: slice
    shards: RowShards | None
    team: RowShards | None
    queries: int

    def join(self, values: Tensor) -> Tensor:
        """Return every process's part of ``[..., N, own]`` as ``[..., N, Q]``."""
        if self.team is None:
            return values
        if self.shards is not None:
            return self.shards.all_sum(values)
        if self.queries < self.team.world:
            return values
        whole = torch.zeros(*values.shape[:-1], self.queries, dtype=values.dtype)
        whole[..., self.columns] = values
        return self.team.all_sum(whole)


NOTHING_MOVED = (
    "All scores are zero: no example's weight changes the query. Look whether training moved the parameters (a "
    "learning rate of 0, frozen weights), and whether the query depends on them."
)
"""Warning of a walk that has found nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkJob:
    """Scores of one run and query by an `Estimator`.

    Attributes:
        settings: How to go about it.
        run: Record, model and data.
        query: What is asked.
        estimator: How to answer.
        team: This process among several that work together, if there are several.
    """

    settings: Settings
    run: OpenedRun
    query: BoundQuery
    estimator: Estimator
    team: RowShards | None = None

    def result(self) -> JobResult:
        """Walk, check, and put the result together."""
        run, log = self.run, self.run.log
        began = clock(run.host.device)
        values, end = self.query.end(run)
        run.audit(self.first_step)
        findings = Findings([*run.remarks])
        self._hold_rounding(findings)
        attributes = run.host.attributes
        if attributes is not None and attributes.held:
            findings.notes.append(
                f"Set between steps by hooks or callbacks, and held as recorded, as learning rates are: "
                f"{', '.join(attributes.held)}."
            )
        if self.settings.certificate != "off":
            checks, notes = check_logged_query(run, self.query, values)
            findings.further.extend(checks)
            findings.notes.extend(notes)
        part, start = self._part(end.queries, findings), []
        epochs = log.step(len(log) - 1).epoch + 1 if self.settings.per_epoch else 0
        start.append(end.columns(part.columns))
        del end  # of the size of the model
        tally = self._walk(start, epochs, part, findings)
        joined = part.join(tally.scores)  # a process's own part may be zero where the whole is not
        if not bool(joined.any()):
            findings.unjudged.append(NOTHING_MOVED)
        if findings.reached:
            self._measure_trust(clock(run.host.device) - began, findings)
        checks, notes = rebuilding_checks(tally.drift, tally.both_ways, _precision(run))
        findings.further.extend(checks)
        findings.notes.extend(notes)
        return JobResult(
            values=joined,
            queries=self.query.names,
            better=(self.query.query.better,) * part.queries,
            per_epoch=None if tally.per_epoch is None else part.join(tally.per_epoch),
            certificate=Certificate(
                level=self.settings.certificate,
                step_replay=tally.comparison.value(precision=_precision(run), of=len(log)),
                gradient_check=findings.gradient,
                trust=findings.trust,
                amplification=tally.growth.value(self.first_step) if self.estimator.exact else None,
                further=tuple(findings.further),
                unjudged=(*row_warnings(run.objective), *findings.unjudged),
                seconds=findings.seconds,
                notes=tuple(findings.notes),
            ),
            provenance=answer_provenance(self.estimator, self.query, values),
        )

    def _hold_rounding(self, findings: Findings) -> None:
        """Look for elements of the gradient that are zero but for rounding, where the optimizer makes steps of it."""
        run = self.run
        if not rule_for(run.log.header.optimizer).needs_gradient:
            return
        run.objective.vanishing = vanishing = run.once("vanishing", lambda: find_vanishing(run))
        if vanishing.elements:
            names = [run.objective.vector.names[place] for place in vanishing.elements]
            findings.notes.append(
                f"{vanishing.count} elements of {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} have a "
                "gradient that is zero but for rounding (as a bias before BatchNorm has), of which the optimizer makes "
                "steps; these are held as recorded, and no example's weight is said to move them."
            )

    @property
    def first_step(self) -> int:
        """Return the step at which the walk ends."""
        return self.estimator.first_step(self.run.log)

    def plan(self) -> Plan | None:
        """Return what will be re-run; ``None`` if nothing."""
        first = self.first_step
        if self.settings.certificate == "off" or first == len(self.run.log):
            return None
        if self.settings.certificate == "full":
            return Plan(first_step=first, directions=4)
        return fast_plan(self.run.log, first)

    def _walk(self, start: list[Adjoint], epochs: int, part: Part, findings: Findings) -> Tally:
        """Walk from where ``start`` is, which is taken out of it: it should not last as long as the walk."""
        plan, total = self.plan(), len(self.run.log)
        kept = {self.first_step, *(total - length for length in window_lengths(total - self.first_step))}
        steps = total - self.first_step
        compiled = CompiledSteps.wanted(self.run.objective, steps, compile=self.settings.compile)
        shards = part.shards
        swaps = None if self.settings.certificate == "off" else SwapComparison(self.run)
        with self._progress() as bar:

            def on_step(t: int, before: ModelState, tally: Tally) -> None:
                bar.update()
                if plan is None or part.columns.start != 0 or (t != plan.first_step and t not in kept):
                    return
                scores = tally.scores if shards is None else shards.all_sum(tally.scores.clone())
                if t in kept:
                    findings.reached[t] = Reached(scores[:, 0].clone(), tally.first.clone())
                if t == plan.first_step and self.estimator.exact:
                    self._check(plan, before, scores, findings)

            walk = Walk(
                run=self.run,
                query=self.query,
                estimator=self.estimator,
                columns=part.columns,
                shards=shards,
                max_states=self._max_states(),
                compare=self._compares(findings),
                swaps=swaps,
                compiled=compiled,
                on_step=on_step,
            )
            tally = walk.start(start.pop(), epochs=epochs)
        if swaps is not None:
            findings.cost += swaps.cost
            findings.unjudged.extend(swaps.unjudged)
            if (check := swaps.value()) is not None:
                findings.further.append(check)
        if compiled is not None and compiled.note and self.settings.compile:
            findings.notes.append(compiled.note)
        return tally

    def _compares(self, findings: Findings) -> bool:
        """Return true if states are compared with recorded ones: only in the precision of the run.

        Rounding decides what an optimizer like Adam does with a gradient that is zero but for it (a bias before
        BatchNorm).
        """
        if self.settings.certificate == "off":
            return False
        recorded = {dtype for _, _, dtype in self.run.log.header.parameters}
        if self.settings.precision == "64-true" and recorded != {"float64"}:
            findings.notes.append(
                "Steps were not compared with the record: the replay computes in float64, the run in "
                f"{', '.join(sorted(recorded))}."
            )
            return False
        return True

    def _part(self, count: int, findings: Findings) -> Part:
        """Return this process's queries, or its rows of each batch: one of the two is everything."""
        everything, team = slice(0, count), self.team
        if team is None or count >= team.world:
            return Part(everything if team is None else team.rows(count), None, team, count)
        run = self.run
        alone = getattr(self.estimator, "divisor", "kept") == "kept"  # what is left is counted over the whole batch
        if alone and rows_are_separate(run.objective, team, run.final, run.log.step(len(run.log) - 1)):
            return Part(everything, team, team, count)
        findings.notes.append(
            "Rows of a batch see each other in this model (BatchNorm, dropout, class weights ...), so every process "
            "did the whole replay."
        )
        return Part(everything, None, team, count)

    def _check(self, plan: Plan, before: ModelState, scores: Tensor, findings: Findings) -> None:
        """Re-run the window and compare the walk's scores so far with it."""
        began, log, cost = time.perf_counter(), self.run.log, clock(self.run.host.device)
        with open_rerun(self.run, self.query, first_step=plan.first_step, start=before) as rerun:
            ids = torch.unique(torch.cat([torch.tensor(s.example_ids) for s in log.steps(plan.first_step, len(log))]))
            findings.gradient = check_gradient(rerun, scores, plan, ids)
        findings.seconds += time.perf_counter() - began
        findings.cost += clock(self.run.host.device) - cost

    def _measure_trust(self, elapsed: float, findings: Findings) -> None:
        """Leave examples out and compare; ``elapsed`` is the cost of the scores with their checks."""
        began = time.perf_counter()
        full = self.settings.certificate == "full"
        walked = len(self.run.log) - self.first_step
        allowance = full_allowance() if full else fast_allowance(elapsed - findings.cost, findings.cost, walked)
        findings.trust, notes = check_trust(self.run, self.query, findings.reached, allowance)
        findings.notes += notes
        findings.seconds += time.perf_counter() - began

    def _progress(self) -> Any:
        return tqdm(
            total=len(self.run.log) - self.first_step,
            desc="replaying backwards",
            unit=" steps",
            disable=not self.settings.progress or (self.team is not None and self.team.rank > 0),
            dynamic_ncols=True,
            file=sys.stderr,
            leave=False,
        )

    def _max_states(self) -> int:
        return states_in(self.settings.memory_bytes, self.run.final.nbytes)


def _precision(run: OpenedRun) -> str:
    """Return the precision that the run is computed in, by the name of its type."""
    return str(run.objective.parameters[0].dtype).removeprefix("torch.")
