"""Counterfactual runs under way: many at once, or one after another where that cannot be.

Both can be stopped, asked, thinned out and taken further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.averaging import feed, with_average
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.replayer import Divisor, Replayer
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.plan import Plan
from lightning_sgdinf.truth.replicas import Replicas, Stack
from lightning_sgdinf.truth.stacked_query import StackedQuery

Count = Callable[[int], object]
"""Is told how many training steps were taken."""


class Runs(Protocol):
    """Some counterfactual runs and, beside them, the recorded run taken again.

    Attributes:
        numbers: Which sets of the plan they leave out, in the order in which they leave the recorded run.
        position: The step before which they stand.
        steps_taken: Training steps taken so far, all runs together.
    """

    numbers: list[int]
    position: int
    steps_taken: int

    def advance(self, stop: int, count: Count) -> None:
        """Take them to step ``stop``."""
        ...

    def values(self) -> tuple[Tensor, Tensor]:
        """The query's change in each run, and its value in the recorded one: float64 ``[K, Q]`` and ``[Q]``."""
        ...

    def departures(self, along: Adjoint) -> Tensor:
        r""":math:`\langle u, s^{-D}_t - s_t\rangle` for the state each run is in now, float64 ``[K, Q]``."""
        ...

    def moved(self) -> dict[str, Tensor]:
        """How far the parameters of each run lie from those of the recorded one, ``[K, *shape]`` by name."""
        ...

    def select(self, numbers: Sequence[int]) -> None:
        """Go on with these runs only."""
        ...


class StackedRuns:
    """Runs taken at once; see `Runs`.

    Args:
        log: The record.
        objective: The opened model.
        asking: Asks the query.
        plan: What is left out.
        numbers: Which of its sets.
        start: The stored state to start from.
        divisor: What the losses of a batch are divided by.
        asked_at_once: How many models are asked at once.
    """

    def __init__(
        self,
        log: Trajectory,
        objective: Objective,
        asking: StackedQuery,
        plan: Plan,
        numbers: Sequence[int],
        start: int,
        *,
        divisor: Divisor,
        asked_at_once: int,
    ) -> None:
        self._log, self._asking, self._plan = log, asking, plan
        self._asked_at_once = asked_at_once
        self.numbers = plan.ordered(numbers)
        self.position, self.steps_taken = start, 0
        nothing = torch.ones(1, plan.examples, dtype=torch.bool)
        self._lanes = Replicas(log, objective, log.state(start), nothing, divisor=divisor)
        self._joined = 0

    def advance(self, stop: int, count: Count) -> None:
        """Take them to step ``stop``; a run joins when its first example is drawn."""
        for step in self._log.steps(self.position, stop):
            joining = [i for i in self.numbers[self._joined :] if self._plan.first[i] <= step.index]
            if joining:
                self._lanes.join(self._plan.keep(joining))
                self._joined += len(joining)
            self._lanes.advance(step)
            self.steps_taken += len(self._lanes)
            count(self._joined)
        self.position = stop

    def values(self) -> tuple[Tensor, Tensor]:
        """See `Runs`; a run that has not left the recorded one has no change."""
        at_end = self.position == len(self._log)
        found = self._asking.of_stack(self._lanes.stack, at_once=self._asked_at_once, averaged=at_end)
        changes = torch.zeros(len(self.numbers), found.shape[1], dtype=torch.float64)
        changes[: self._joined] = found[1:] - found[0]
        return changes, found[0]

    def departures(self, along: Adjoint) -> Tensor:
        """See `Runs`."""
        found = torch.zeros(len(self.numbers), along.queries, dtype=torch.float64)
        found[: self._joined] = _departures(self._lanes.stack, along)
        return found

    def moved(self) -> dict[str, Tensor]:
        """See `Runs`."""
        waiting = len(self.numbers) - self._joined
        return {
            n: torch.cat([p[1:] - p[:1], p.new_zeros(waiting, *p.shape[1:])])
            for n, p in self._lanes.stack.params.items()
        }

    def select(self, numbers: Sequence[int]) -> None:
        """See `Runs`."""
        wanted = set(numbers)
        rows = [row for row, i in enumerate(self.numbers[: self._joined]) if i in wanted]
        self._lanes.select(torch.tensor([0, *(row + 1 for row in rows)]))
        self._joined = len(rows)
        self.numbers = [i for i in self.numbers if i in wanted]


class SequentialRuns:
    """Runs taken one after another by the kernels of training; see `Runs`. Arguments are those of `StackedRuns`."""

    def __init__(
        self,
        log: Trajectory,
        objective: Objective,
        asking: StackedQuery,
        plan: Plan,
        numbers: Sequence[int],
        start: int,
        *,
        divisor: Divisor,
    ) -> None:
        self._log, self._asking, self._plan = log, asking, plan
        self._retracer = Replayer(log, objective, divisor=divisor)
        self.numbers = plan.ordered(numbers)
        self.position, self.steps_taken = start, 0
        state = log.state(start)
        self._base: tuple[ModelState, dict[str, Tensor]] = state, {}
        self._own: dict[int, tuple[ModelState, dict[str, Tensor]]] = {}

    def advance(self, stop: int, count: Count) -> None:
        """Take them to step ``stop``."""
        start = self.position
        for number in self.numbers:
            first = max(start, int(self._plan.first[number]))
            if first >= stop:
                continue
            state = self._own.get(number) or self._take(self._base, start, first, None)
            weights = self._plan.keep([number])[0].double()
            self._own[number] = self._take(state, first, stop, weights)
            count(stop - first)
        self._base = self._take(self._base, start, stop, None)
        self.position = stop

    def values(self) -> tuple[Tensor, Tensor]:
        """See `Runs`."""
        base = self._asking.of_state(self._averaged(self._base))
        changes = torch.zeros(len(self.numbers), len(base), dtype=torch.float64)
        for row, number in enumerate(self.numbers):
            if number in self._own:
                changes[row] = self._asking.of_state(self._averaged(self._own[number])) - base
        return changes, base

    def departures(self, along: Adjoint) -> Tensor:
        """See `Runs`."""
        found = torch.zeros(len(self.numbers), along.queries, dtype=torch.float64)
        for row, number in enumerate(self.numbers):
            if number in self._own:
                found[row] = _departures(_pair(self._base, self._own[number]), along)[0]
        return found

    def moved(self) -> dict[str, Tensor]:
        """See `Runs`."""
        base = self._base[0].params
        states = [self._own.get(i, self._base)[0].params for i in self.numbers]
        return {n: torch.stack([s[n] - p for s in states]) for n, p in base.items()}

    def select(self, numbers: Sequence[int]) -> None:
        """See `Runs`."""
        wanted = set(numbers)
        self.numbers = [i for i in self.numbers if i in wanted]
        self._own = {i: state for i, state in self._own.items() if i in wanted}

    def _take(
        self, state: tuple[ModelState, dict[str, Tensor]], start: int, stop: int, weights: Tensor | None
    ) -> tuple[ModelState, dict[str, Tensor]]:
        now, fed = state
        self.steps_taken += stop - start
        if self._log.average is None:
            return (self._retracer.run(now, start, stop, weights=weights) if stop > start else now), fed
        for step in self._log.steps(start, stop):
            now = self._retracer.advance(now, step, weights=weights)
            fed = feed(fed, {**now.params, **now.buffers}, step)
        return now, fed

    def _averaged(self, state: tuple[ModelState, dict[str, Tensor]]) -> ModelState:
        if self._log.average is None or self.position < len(self._log):
            return state[0]
        return with_average(state[0], self._log.average, state[1], self._base[1])


def _departures(stack: Stack, along: Adjoint) -> Tensor:
    """Inner products of an adjoint with how far each lane's state lies from that of lane 0, ``[L - 1, Q]``."""
    names = list(stack.params)

    def product(adjoint: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        parts = [values.get(n, torch.zeros_like(stack.params[n])) for n in names]
        moved = torch.cat([_rows(v) for v in parts], dim=1)
        return moved @ adjoint.double().T

    found = product(along.params, stack.params)
    for key, adjoint in along.optimizer.items():
        found = found + product(adjoint, {n: m[key] for n, m in stack.memory.items() if key in m})
    if along.average is not None and stack.fed:
        found = found + product(along.average, stack.fed)
    for of, values in ((along.buffers, stack.buffers), (along.average_buffers, stack.fed)):
        for name in of.keys() & values.keys():
            found = found + _rows(values[name]) @ of[name].reshape(along.queries, -1).double().T
    return found.cpu()


def _rows(value: Tensor) -> Tensor:
    """How far each lane's tensor lies from that of lane 0, ``[L - 1, n]``."""
    return (value[1:] - value[:1]).reshape(len(value) - 1, -1).double()


def _pair(base: tuple[ModelState, dict[str, Tensor]], other: tuple[ModelState, dict[str, Tensor]]) -> Stack:
    """Two states as a stack."""
    (a, fed_a), (b, fed_b) = base, other
    shapes = {n: p.shape for n, p in a.params.items()}
    return Stack(
        params={n: torch.stack([p, b.params[n]]) for n, p in a.params.items()},
        buffers={n: torch.stack([v, b.buffers[n]]) for n, v in a.buffers.items() if v.is_floating_point()},
        shared={n: v for n, v in a.buffers.items() if not v.is_floating_point()},
        memory={
            n: {k: torch.stack([v, b.optimizer[n][k]]) for k, v in entries.items() if v.shape == shapes[n]}
            for n, entries in a.optimizer.items()
        },
        fed={n: torch.stack([v, fed_b[n]]) for n, v in fed_a.items()},
    )
