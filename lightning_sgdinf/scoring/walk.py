"""The walk: every visited step handed to the estimator, last to first, and compared with the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, BoundQuery, CompiledSteps, PulledStep, rule_for
from lightning_sgdinf.checks import Growth, StepComparison
from lightning_sgdinf.errors import NonFiniteError, StepMismatchError, UntappedLossError
from lightning_sgdinf.estimators import Estimator
from lightning_sgdinf.estimators.base import visited
from lightning_sgdinf.replay import OpenedRun, Replayer, RowShards, rebuild, refuse_changes, states_backwards
from lightning_sgdinf.replay.untapped import WAYS_OUT, expect_penalty
from lightning_sgdinf.state import ModelState

UNREACHED = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Part of a step's gradient along the push that the slopes of its examples may miss, by rounding."""
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
        rebuilt: States that were rebuilt and matched the recorded checksum.
    """

    scores: Tensor
    per_epoch: Tensor | None
    growth: Growth
    first: Tensor
    comparison: StepComparison = field(default_factory=StepComparison)
    rebuilt: int = 0

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
        compiled: Compiles the steps' kernel; ``None`` for the eager one.
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
    compiled: CompiledSteps | None = None
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
        rule, final = rule_for(log.header.optimizer), self.run.final
        states = ((t, final) for t in range(total - 1, first - 1, -1)) if frozen else self._states(total, first, tally)
        after, following = final, None
        for step, (t, before) in zip(log.steps(total, first), states, strict=True):
            if following is not None and not frozen:
                refuse_changes(following)
            at = AdjointStep(
                step,
                _on(before, objective.host.device),
                objective,
                rule,
                self._query_at,
                is_epoch_end=following is None or following.epoch != step.epoch,
                shards=self.shards,
                compiled=self.compiled,
            )
            pulled = self._visit(at, adjoint, None if frozen else after, tally.comparison)
            self._expect_reached(pulled, at)
            adjoint = pulled.adjoint
            ids = torch.tensor(step.example_ids)
            tally.add(ids, pulled.slopes, step.epoch)
            tally.first[ids] = t
            tally.growth.see(adjoint, t)
            after, following = before, step
            self.on_step(t, before, tally)
        if not bool(torch.isfinite(tally.scores).all()):
            raise NonFiniteError(
                "a score is not finite although every step was; this is a defect, please report it with the log's "
                "header"
            )
        return tally

    def _expect_reached(self, pulled: PulledStep, at: AdjointStep) -> None:
        """Make sure that the slopes of a step's examples add up to what its gradient does along the push.

        Where a penalty is in the loss they do not; then some steps are asked whether the rest depends on their data.
        """
        objective, step = self.run.objective, at.step
        audit = self.run.audit(self.estimator.first_step(self.run.log))
        if audit.penalty and objective.per_example_loss is None:
            if step.index % ASKED == 0 or step.index >= len(self.run.log) - 3:
                objective.load(at.before)
                for micro in step.micro_batches:
                    expect_penalty(objective, step, micro, audit.taps, objective.others)
            return
        if pulled.unreached is None or audit.penalty:
            return
        allowed = UNREACHED.get(objective.parameters[0].dtype, COARSE)
        if not pulled.unreached <= allowed:
            raise UntappedLossError(
                f"step {step.index}: the slopes of its {len(step.example_ids)} examples do not add up to the step's "
                f"gradient; {pulled.unreached:.1e} of it is missing (allowed {allowed:.0e}). A term of its loss is "
                f"reached by no example's weight. {WAYS_OUT}"
            )

    def _query_at(self, state: ModelState) -> Adjoint:
        adjoint = self.query.gradient(state)[1]
        return adjoint if self.columns is None else adjoint.columns(self.columns)

    def _visit(
        self, at: AdjointStep, adjoint: Adjoint, after: ModelState | None, comparison: StepComparison
    ) -> PulledStep:
        """Let the estimator account for a step, and compare the state it led to with the recorded one."""
        pulled = visited(self.estimator, at, adjoint)
        if not self.compare or after is None or pulled.taken is None:
            return pulled
        vector = self.run.objective.vector
        try:
            comparison.add(pulled, at.step, at.before, after, vector, at.rounded)
        except StepMismatchError:
            if self.compiled is None or self.compiled.note:
                raise
            self.compiled.give_up(f"step {at.step.index}, by the compiled kernel, leads elsewhere than recorded")
            pulled = visited(self.estimator, at, adjoint)
            comparison.add(pulled, at.step, at.before, after, vector, at.rounded)
        return pulled

    def _states(self, start: int, stop: int, tally: Tally) -> Iterator[tuple[int, ModelState]]:
        log = self.run.log
        replayer = Replayer(log, self.run.objective)

        def advance(state: ModelState, t: int) -> ModelState:
            rebuilt = rebuild(replayer, state, log.step(t))
            tally.rebuilt += 1
            return rebuilt

        return states_backwards(log, start, stop, advance, max_states=self.max_states)


def _on(state: ModelState, device: torch.device) -> ModelState:
    """Return the state on the device of the computation; counters stay on the CPU, where optimizers want them."""
    return state if device.type == "cpu" else state.map(lambda v: v.to(device) if v.ndim else v)
