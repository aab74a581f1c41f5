"""Single examples really left out of a recorded run within a budget of time and memory.

`Counterfactuals` measures whatever it is asked for, however long it takes. Here the cost is known beforehand: the pace
is measured on a few steps, the time of a choice of examples is forecast from it, and no more models are trained at once
than memory allows. Replay of the record is taken for granted (a walk has compared each of its steps); that many models
at once compute what one does is made sure of by their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery, known_optimizers
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.replay import CounterfactualRun, OpenedRun, stored_at_or_before
from lightning_sgdinf.truth.memory import Footprint, clock, measure_footprint
from lightning_sgdinf.truth.plan import Plan
from lightning_sgdinf.truth.replicas import Replicas
from lightning_sgdinf.truth.runs import Runs, SequentialRuns, StackedRuns
from lightning_sgdinf.truth.stacked_query import StackedQuery
from lightning_sgdinf.truth.verify import gradients_agree

FEW = 3
"""Fewer models at once are not worth the one that is trained beside them with nothing left out."""
PROBED = 7
"""Models of the second step that is timed, at most."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The time that training without examples takes.

    Attributes:
        step: Seconds of a step, however many models take it.
        model: Seconds of a step more for each model.
        query: Seconds of the query of one model.
        per_pass: Number of models trained, beside the one with nothing left out, in one pass over the steps.
        stacked: True if they are trained at once, false if one after another.
        bytes: That one model needs for a step.
        queries: Number of models whose query is computed at once.
    """

    step: float
    model: float
    query: float
    per_pass: int
    stacked: bool
    bytes: int
    queries: int

    def seconds(self, steps: int, costs: Sequence[int]) -> float:
        """Forecast the time of a choice of examples.

        Args:
            steps: From the first state needed to the end of the run.
            costs: Steps of the run without each example, from where it leaves the recorded one.
        """
        passes = -(-len(costs) // self.per_pass)
        models = passes * steps + sum(costs)
        return passes * steps * self.step + models * self.model + (passes + len(costs)) * self.query


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRemovals:
    """The outcome of leaving single examples out.

    Attributes:
        changes: ``query(without) - query(with)``, float64 ``[n, Q]``.
        base: ``query(with)`` of the run taken again beside them, float64 ``[Q]``.
        steps_taken: Training steps, those of all models together.
        at_once: Models trained at once, beside the one with nothing left out; 1 if one after another.
    """

    changes: Tensor
    base: Tensor
    steps_taken: int
    at_once: int


class Removals:
    """Leaves single examples out of a recorded run from a step on.

    Args:
        run: The recorded run.
        query: What is asked at its end.
        first: The step at or after ``first_step`` at which each example is first drawn, int64 ``[N]``; ``T`` for those
            that are not.
        first_step: The step from which examples are left out.
        memory_bytes: For the models that are trained at once; one is, whatever it needs.
        pace: As another of these measured it; ``None`` measures it on two or three of the first steps.

    Attributes:
        pace: The time that steps take.
        start: The stored state from which the steps are taken again.

    Raises:
        StateNotStoredError: The log stores no state to start from.
    """

    def __init__(
        self,
        run: OpenedRun,
        query: BoundQuery,
        first: Tensor,
        *,
        first_step: int,
        memory_bytes: int,
        pace: Pace | None = None,
    ) -> None:
        self._run, self._query, self._stacked = run, query, StackedQuery(query, run.log.average)
        self._memory_bytes, self._stop = memory_bytes, len(run.log)
        self.first = first
        self.first_step, self.start = first_step, stored_at_or_before(run.log, first_step)
        self.pace = pace or self._measured_pace()

    @property
    def steps(self) -> int:
        """Return the number of steps from the stored state to the end."""
        return self._stop - self.start

    def costs(self, ids: Sequence[int]) -> list[int]:
        """Return the number of steps that the run without each of some examples takes."""
        return [self._stop - int(self.first[j]) for j in ids]

    def forecast(self, ids: Sequence[int]) -> float:
        """Return about how many seconds it takes to leave each of some examples out."""
        return self.pace.seconds(self.steps, self.costs(ids))

    def memory_bytes(self, count: int) -> int:
        """Return about how many bytes the models need that are trained at once where some examples are left out."""
        return self.pace.bytes * (min(self.pace.per_pass, count) + 1 if self.pace.stacked else 1)

    def _measured_pace(self) -> Pace:
        footprint = measure_footprint(self._run, self._query)
        at_once = self._memory_bytes // max(footprint.step, 1) - 1
        return self._pace_at_once(int(at_once), footprint) or self._pace_in_turn(footprint)

    def measure(self, ids: Sequence[int]) -> MeasuredRemovals:
        """Train without each of some examples.

        Raises:
            NonFiniteError: A run diverges without its example.
        """
        sets, first = tuple((j,) for j in ids), self.first[list(ids)].numpy()
        plan = Plan(sets, self._run.examples, first, self.first_step, self._stop)
        pace = self.pace
        if pace.stacked:
            try:
                return self._taken(plan, pace)
            except SgdInfluenceError:
                raise
            except Exception:  # whatever an operation of the user's can fail with in a vectorised pass
                self.pace = pace = replace(pace, stacked=False)
        return self._taken(plan, pace)

    def _taken(self, plan: Plan, pace: Pace) -> MeasuredRemovals:
        order, base, steps = plan.ordered(range(len(plan.sets))), None, 0
        changes = torch.zeros(len(order), len(self._stacked.names), dtype=torch.float64)
        for position in range(0, len(order), pace.per_pass):
            chunk = order[position : position + pace.per_pass]
            start = stored_at_or_before(self._run.log, int(plan.first[chunk[0]]))
            runs = self._runs(plan, chunk, start, stacked=pace.stacked)
            runs.advance(plan.stop, lambda taken: None)
            changes[runs.numbers], base = runs.values()
            steps += runs.steps_taken
        assert base is not None
        return MeasuredRemovals(changes, base, steps, min(pace.per_pass, len(order)) if pace.stacked else 1)

    def _runs(self, plan: Plan, chunk: list[int], start: int, *, stacked: bool) -> Runs:
        if not stacked:
            return SequentialRuns(self._run, self._stacked, plan, chunk, start, divisor="kept")
        at_once = self.pace.queries
        return StackedRuns(self._run, self._stacked, plan, chunk, start, divisor="kept", queries_at_once=at_once)

    def _pace_at_once(self, at_once: int, footprint: Footprint) -> Pace | None:
        """Return the pace of many models at once; ``None`` if they cannot be, or are too few to be worth it."""
        run, log = self._run, self._run.log
        if at_once < FEW or log.header.optimizer not in known_optimizers():
            return None
        state, step = log.state(self.start), log.step(self.start)
        try:
            if not gradients_agree(run, state, step):
                return None
            one, several = (self._step_seconds(count) for count in (2, min(PROBED, at_once + 1)))
        except SgdInfluenceError:
            raise
        except Exception:  # whatever an operation of the user's can fail with in a vectorised pass
            return None
        model = max(0.0, several - one) / (min(PROBED, at_once + 1) - 2)
        queries = footprint.queries(self._memory_bytes)
        return Pace(max(0.0, one - 2 * model), model, footprint.query_seconds, at_once, True, footprint.step, queries)

    def _step_seconds(self, count: int) -> float:
        log = self._run.log
        replicas = Replicas(self._run, log.state(self.start), torch.ones(count, self._run.examples, dtype=torch.bool))
        step = log.step(self.start)
        began = self._now()
        replicas.advance(step)
        return self._now() - began

    def _now(self) -> float:
        return clock(self._run.host.device)

    def _pace_in_turn(self, footprint: Footprint) -> Pace:
        start = self._run.log.state(self.start)
        weights = torch.ones(self._run.examples, dtype=torch.float64)
        one = CounterfactualRun(self._run, self.start, self.start + 1, start=start)
        seconds = []
        for _ in range(2):  # the first is slower
            began = self._now()
            one.run(weights=weights)
            seconds.append(self._now() - began)
        per_pass = max(1, self._memory_bytes // max(start.nbytes, 1))
        return Pace(0.0, min(seconds), footprint.query_seconds, per_pass, False, footprint.step, 1)
