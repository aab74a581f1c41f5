"""The walk: every visited step handed to the estimator, last to first, and compared with the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import (
    Adjoint,
    AdjointStep,
    BoundQuery,
    CompiledSteps,
    PulledStep,
    Settle,
    TakenStep,
    rule_for,
)
from lightning_sgdinf.checks import Growth, StepComparison, SwapComparison
from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import NonFiniteError, StepMismatchError, UntappedLossError
from lightning_sgdinf.estimators import Estimator
from lightning_sgdinf.estimators.base import visited
from lightning_sgdinf.log import Step
from lightning_sgdinf.replay import Drift, OpenedRun, Rebuilder, RowShards, StretchEnd, refuse_changes, states_backwards
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.replay.reproducibility import acting_hooks
from lightning_sgdinf.replay.untapped import WAYS_OUT, expect_mean, expect_penalty
from lightning_sgdinf.replay.weight_audit import LossAudit
from lightning_sgdinf.scoring.both_ways import BothWays
from lightning_sgdinf.state import ModelState

UNREACHED = {"float64": 1e-8, "float32": 1e-3}
"""Part of a step's gradient along the push that the slopes of its examples may miss, by rounding."""
LOSS = {"float64": 1e-6, "float32": 1e-3}
"""Relative difference of a recorded loss and the mean of the losses of its examples."""
COARSE = 1e-1
ASKED = 17
"""Steps between two that are asked whether a penalty is one."""


@dataclass(slots=True)
class Tally:
    """Everything that a walk accumulates.

    Attributes:
        scores: ``[N, Q]`` float64, minus the sum of slopes so far.
        per_epoch: ``[E, N, Q]``, or ``None`` if not asked for.
        growth: Of the adjoint so far.
        first: The step at which each example is first drawn from here on; ``T`` if it is not. int64 ``[N]``.
        comparison: Step replay so far.
        drift: Of the states that were rebuilt.
        both_ways: What close rebuilding does to the scores.
    """

    scores: Tensor
    per_epoch: Tensor | None
    growth: Growth
    first: Tensor
    comparison: StepComparison = field(default_factory=StepComparison)
    drift: Drift = field(default_factory=Drift)
    both_ways: BothWays = field(default_factory=BothWays)

    def add(self, ids: Tensor, slopes: Tensor, epoch: int) -> None:
        """Accumulate the slopes ``[Q, B]`` of one step."""
        part = -slopes.detach().to("cpu", torch.float64).T
        self.scores.index_add_(0, ids, part)
        if self.per_epoch is not None:
            self.per_epoch[epoch].index_add_(0, ids, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A walk backwards over a recorded run, but for the adjoint it starts from.

    Attributes:
        run: The recorded run.
        query: What is asked.
        estimator: What to do at each step.
        columns: Which of the queries are walked for; ``None`` for all.
        shards: This process's rows of each batch, if they are sharded.
        max_states: How many rebuilt states may be held at once.
        compare: Compare the states that steps lead to with the recorded ones.
        swaps: Exchanges examples of some steps for others; ``None`` not to.
        compiled: Compiles the steps' kernel; ``None`` for the eager one.
        keeps_taken: The estimator wants the optimizer steps that are taken; else each is dropped before the second
            derivatives.
        on_step: Called when a step is done, with its index, the state it was taken from and the tally; for progress and
            for checks along the way.
    """

    run: OpenedRun
    query: BoundQuery
    estimator: Estimator
    columns: slice | None = None
    shards: RowShards | None = None
    max_states: int = 64
    compare: bool = True
    swaps: SwapComparison | None = None
    compiled: CompiledSteps | None = None
    keeps_taken: bool = False
    on_step: Callable[[int, ModelState, Tally], None] = lambda step, before, tally: None

    def start(self, adjoint: Adjoint, *, epochs: int = 0) -> Tally:
        """Walk from the end of the run to the estimator's first step.

        Args:
            adjoint: The gradient of the queries at the end of the run.
            epochs: ``E`` to keep contributions per epoch, 0 not to.

        Raises:
            StepMismatchError: If a step, taken again, leads to another state than the recorded one.
            ConfigurationError: If states must be rebuilt and the precision is not the recorded one.
            UnsupportedRunError: If something other than the optimizer changed the state on the way.
            NonFiniteError: If a number stops being finite; names the step.
        """
        log, objective = self.run.log, self.run.objective
        queries, examples = adjoint.queries, self.run.examples
        tally = Tally(
            torch.zeros(examples, queries, dtype=torch.float64),
            torch.zeros(epochs, examples, queries, dtype=torch.float64) if epochs else None,
            Growth.from_end(adjoint, len(log)),
            torch.full((examples,), len(log)),
        )
        total, first = len(log), self.estimator.first_step(log)
        frozen = total > first and self.estimator.state_for(total - 1, log) == total
        rebuilder = Rebuilder(log, objective, self.run.rebuild)
        tally.drift = rebuilder.drift
        states = self._frozen(total, first) if frozen else self._states(total, first, rebuilder)
        after = self.run.final if self.compare and not frozen else None
        following: Step | None = None
        rule, audit = rule_for(log.header.optimizer), self.run.audit(first)
        for step, (t, before) in zip(log.steps(total, first), states, strict=True):
            if following is not None and not frozen:
                refuse_changes(following)
            if after is not None and rebuilder.end is not None and rebuilder.end.index == t + 1:
                after = rebuilder.end.state  # not the stored one, from which the rebuilt steps have drifted
            recorded, after = [] if after is None else [after], before if self.compare and not frozen else None
            at = AdjointStep(
                step,
                _on(before, objective.host.device),
                objective,
                rule,
                self._query_at,
                is_epoch_end=following is None or following.epoch != step.epoch,
                shards=self.shards,
                compiled=self.compiled,
                settle=self._settle(step, before, recorded, tally.comparison),
            )
            if rebuilder.end is not None and self.compare and self.shards is None:
                self._walk_both_ways(rebuilder.end, at, before, adjoint, tally.both_ways)
            adjoint, structures = self._take(at, adjoint, recorded, tally, audit)
            if self.swaps is not None:
                self.swaps.see(step, at.before, structures)
            following = step
            self.on_step(t, before, tally)
        if not bool(torch.isfinite(tally.scores).all()):
            raise NonFiniteError(
                "a score is not finite although every step was; this is a defect, please report it with the log's "
                "header"
            )
        return tally

    def _take(
        self, at: AdjointStep, adjoint: Adjoint, recorded: list[ModelState], tally: Tally, audit: LossAudit
    ) -> tuple[Adjoint, Sequence[PassStructure]]:
        """Account for a step; return the adjoint before it, and the structures of its passes."""
        pulled = self._visit(at, adjoint, recorded, tally.comparison)
        self._expect_reached(pulled, at, audit)
        ids = torch.tensor(at.step.example_ids)
        tally.add(ids, pulled.slopes, at.step.epoch)
        tally.both_ways.compare(at.step, pulled.slopes)
        tally.first[ids] = at.step.index
        tally.growth.see(pulled.adjoint, at.step.index)
        return pulled.adjoint, pulled.structures

    def _walk_both_ways(
        self, end: StretchEnd, at: AdjointStep, before: ModelState, adjoint: Adjoint, both_ways: BothWays
    ) -> None:
        """Walk a step from the other version of its rebuilt state, if it is one of the last of a stretch looked at."""
        if end.index == at.step.index + 1:
            both_ways.begin(end, self.run.log.state(end.index), adjoint)

        def pull(moved: ModelState, other: Adjoint) -> PulledStep:
            again = AdjointStep(
                at.step,
                _on(moved, self.run.host.device),
                self.run.objective,
                rule_for(self.run.log.header.optimizer),
                self._query_at,
                is_epoch_end=at.is_epoch_end,
            )
            return visited(self.estimator, again, other)

        both_ways.see(at.step, before, pull)

    def _settle(
        self, step: Step, before: ModelState, recorded: list[ModelState], comparison: StepComparison
    ) -> Settle | None:
        """Return what compares a step as soon as it is taken, and lets go of the recorded state."""
        if self.keeps_taken:
            return None
        vector, device = self.run.objective.vector, self.run.host.device

        def settle(taken: TakenStep, buffers: Mapping[str, Tensor]) -> bool:
            if not recorded:  # nothing to compare with, or an estimator pulls a step several times
                return True
            settled = comparison.settles(taken, buffers, step, (_on(before, device), recorded[0]), vector)
            if settled:
                recorded.clear()
            return settled

        return settle

    def _frozen(self, start: int, stop: int) -> Iterator[tuple[int, ModelState]]:
        """Yield the final state for every step."""
        final = self.run.final
        for t in range(start - 1, stop - 1, -1):
            yield t, final

    def _expect_reached(self, pulled: PulledStep, at: AdjointStep, audit: LossAudit) -> None:
        """Make sure that the slopes of a step's examples add up to what its gradient does along the push.

        Where a penalty is in the loss they do not; then some steps are asked whether the rest depends on their data.
        """
        objective, step = self.run.objective, at.step
        unweighted = any(s.has_unweighted_terms for s in pulled.structures) if pulled.structures else audit.penalty
        if unweighted:
            if step.index % ASKED == 0 or step.index >= len(self.run.log) - 3:
                objective.load(at.before)
                for micro in step.micro_batches:
                    expect_penalty(objective, step, micro, audit.taps, objective.others, objective.audits.scaled)
            return
        if pulled.unreached is None or objective.audits.bent:
            return
        allowed = _tolerance(UNREACHED, self.run)
        if not pulled.unreached <= allowed:
            seen = ", ".join(sorted({name for s in pulled.structures for name, _ in s.calls})) or ", ".join(audit.taps)
            raise UntappedLossError(
                f"step {step.index}: the slopes of its {len(step.example_ids)} examples "
                f"({step.example_ids[:4].tolist()} ...), which enter at {seen}, do not add up to the step's gradient; "
                f"{pulled.unreached:.1e} of it is missing (allowed {allowed:.0e}). A term of its loss is reached by no "
                f"example's weight. {WAYS_OUT}"
            )

    def _expect_recorded_loss(self, pulled: PulledStep, at: AdjointStep) -> None:
        """Make sure that the mean of ``per_example_loss`` is the loss that the step was recorded with.

        Where there is nothing to compare with, some steps are asked for its gradient.
        """
        objective, step = self.run.objective, at.step
        at_recorded = self.estimator.state_for(step.index, self.run.log) == step.index
        comparable = at_recorded and all(m.rank == 0 and not m.without_loss for m in step.micro_batches)
        if pulled.loss is None or step.loss is None or not comparable:
            if step.index % ASKED == 0 or step.index >= len(self.run.log) - 3:
                objective.load(at.before)
                for micro in step.micro_batches:
                    expect_mean(objective, step, micro)
            return
        loss, allowed = float(pulled.loss), _tolerance(LOSS, self.run)
        if not abs(loss - step.loss) <= allowed * max(abs(step.loss), 1e-3):
            raise UntappedLossError(
                f"step {step.index}: the mean of per_example_loss over the examples "
                f"{step.micro_batches[-1].example_ids[:4].tolist()} ... is {loss:.6g}, but the loss that training_step "
                f"returned when the step was recorded is {step.loss:.6g}. per_example_loss must return what each "
                "example adds to the loss, times the batch size, in every step."
            )

    def _query_at(self, state: ModelState) -> Adjoint:
        adjoint = self.query.gradient(state)[1]
        return adjoint if self.columns is None else adjoint.columns(self.columns)

    def _visit(
        self, at: AdjointStep, adjoint: Adjoint, recorded: Sequence[ModelState], comparison: StepComparison
    ) -> PulledStep:
        """Let the estimator account for a step, and compare the state it led to with the recorded one."""
        pulled = visited(self.estimator, at, adjoint)
        if self.run.objective.per_example_loss is not None:
            self._expect_recorded_loss(pulled, at)
        if not recorded or pulled.taken is None:
            return pulled
        (after,) = recorded
        vector = self.run.objective.vector
        by_kernel = self.compiled is not None and not self.compiled.note
        otherwise = self.compiled is not None and self.compiled.rounds_otherwise  # than eager passes tell
        try:
            comparison.add(pulled, at.step, at.before, after, vector, tuple if otherwise else at.rounded)
        except StepMismatchError as mismatch:
            if self.compiled is None or not by_kernel:
                if not (hooks := acting_hooks(self.run.log.header)):
                    raise
                raise StepMismatchError(f"{mismatch} {hooks}") from None
            self.compiled.give_up(f"step {at.step.index}, by the compiled kernel, leads elsewhere than recorded")
            pulled = visited(self.estimator, at, adjoint)
            if pulled.taken is not None:
                comparison.add(pulled, at.step, at.before, after, vector, at.rounded)
        return pulled

    def _states(self, start: int, stop: int, rebuilder: Rebuilder) -> Iterator[tuple[int, ModelState]]:
        log = self.run.log
        return states_backwards(
            log,
            start,
            stop,
            lambda state, t: rebuilder.advance(state, log.step(t)),
            max_states=self.max_states,
            arrive=lambda begin, state, t: rebuilder.arrive(begin, state, log.step(t)),
        )


def _tolerance(allowed: Mapping[str, float], run: OpenedRun) -> float:
    """Return what is allowed in the coarser of the precisions that were recorded and that are computed in."""
    kinds = {dtype_name(p.dtype) for p in run.objective.parameters} | {run.precision}
    if run.objective.dtype is not None:
        kinds |= {"float32"}
    return max(allowed.get(kind, COARSE) for kind in kinds)


def _on(state: ModelState, device: torch.device) -> ModelState:
    """Return the state on the device of the computation; counters stay on the CPU, where optimizers want them."""
    return state if device.type == "cpu" else state.map(lambda v: v.to(device) if v.ndim else v)
