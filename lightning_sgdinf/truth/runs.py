"""Counterfactual runs under way: many at once, or one after another where that cannot be.

Both can be stopped, queried, thinned out and taken further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import Adjoint
from lightning_sgdinf.replay import CounterfactualRun, Course, Divisor, OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.plan import Plan
from lightning_sgdinf.truth.replicas import Replicas, Stack
from lightning_sgdinf.truth.stacked_query import StackedQuery

Count = Callable[[int], object]
"""Called with the number of training steps taken."""


class Runs(Protocol):
    """Some counterfactual runs and, beside them, the recorded run taken again.

    Attributes:
        numbers: Of the sets of the plan that they leave out, in the order in which they leave the recorded run.
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
        """Return the query's change in each run and its value in the recorded one, float64 ``[K, Q]`` and ``[Q]``."""
        ...

    def departures(self, along: Adjoint) -> Tensor:
        r"""Return :math:`\langle u, s^{-D}_t - s_t\rangle` at the present state of each run, float64 ``[K, Q]``."""
        ...

    def displacement(self) -> dict[str, Tensor]:
        """Return the displacement of each run's parameters from the recorded ones, ``[K, *shape]`` by name."""
        ...

    def select(self, numbers: Sequence[int]) -> None:
        """Go on with these runs only."""
        ...


class StackedRuns:
    """Runs taken at once; see `Runs`.

    Args:
        run: The recorded run.
        query: Computes the query of the models.
        plan: The sets to leave out.
        numbers: Of those of its sets that these runs leave out.
        start: The stored state to start from.
        divisor: Of the losses of a batch.
        queries_at_once: Number of models whose query is computed at once.
    """

    def __init__(
        self,
        run: OpenedRun,
        query: StackedQuery,
        plan: Plan,
        numbers: Sequence[int],
        start: int,
        *,
        divisor: Divisor,
        queries_at_once: int,
    ) -> None:
        self._log, self._query, self._plan = run.log, query, plan
        self._queries_at_once = queries_at_once
        self.numbers = plan.ordered(numbers)
        self.position, self.steps_taken = start, 0
        nothing = torch.ones(1, plan.examples, dtype=torch.bool)
        self._replicas = Replicas(run, run.log.state(start), nothing, divisor=divisor)
        self._joined = 0

    def advance(self, stop: int, count: Count) -> None:
        """Take them to step ``stop``; a run joins when its first example is drawn."""
        for step in self._log.steps(self.position, stop):
            joining = [i for i in self.numbers[self._joined :] if self._plan.first[i] <= step.index]
            if joining:
                self._replicas.join(self._plan.keep(joining))
                self._joined += len(joining)
            self._replicas.advance(step)
            self.steps_taken += len(self._replicas)
            count(self._joined)
        self.position = stop

    def values(self) -> tuple[Tensor, Tensor]:
        """See `Runs`; a run that has not left the recorded one has no change."""
        at_end = self.position == len(self._log)
        values = self._query.of_stack(self._replicas.stack, at_once=self._queries_at_once, averaged=at_end)
        changes = torch.zeros(len(self.numbers), values.shape[1], dtype=torch.float64)
        changes[: self._joined] = values[1:] - values[0]
        return changes, values[0]

    def departures(self, along: Adjoint) -> Tensor:
        """See `Runs`."""
        products = torch.zeros(len(self.numbers), along.queries, dtype=torch.float64)
        products[: self._joined] = _departures(self._replicas.stack, along)
        return products

    def displacement(self) -> dict[str, Tensor]:
        """See `Runs`."""
        waiting = len(self.numbers) - self._joined
        return {
            n: torch.cat([p[1:] - p[:1], p.new_zeros(waiting, *p.shape[1:])])
            for n, p in self._replicas.stack.params.items()
        }

    def select(self, numbers: Sequence[int]) -> None:
        """See `Runs`."""
        wanted = set(numbers)
        rows = [row for row, i in enumerate(self.numbers[: self._joined]) if i in wanted]
        self._replicas.select(torch.tensor([0, *(row + 1 for row in rows)]))
        self._joined = len(rows)
        self.numbers = [i for i in self.numbers if i in wanted]


class SequentialRuns:
    """Runs taken one after another by the kernels of training; see `Runs`. Arguments are those of `StackedRuns`."""

    def __init__(
        self,
        run: OpenedRun,
        query: StackedQuery,
        plan: Plan,
        numbers: Sequence[int],
        start: int,
        *,
        divisor: Divisor,
    ) -> None:
        self._query, self._plan = query, plan
        self._run = CounterfactualRun(run, start, start=run.log.state(start), divisor=divisor)
        self.numbers = plan.ordered(numbers)
        self.position, self.steps_taken = start, 0
        self._base = self._run.start
        self._departed: dict[int, Course] = {}

    def advance(self, stop: int, count: Count) -> None:
        """Take them to step ``stop``."""
        start = self.position
        for number in self.numbers:
            first = max(start, int(self._plan.first[number]))
            if first >= stop:
                continue
            course = self._departed.get(number) or self._take(self._base, start, first, None)
            weights = self._plan.keep([number])[0].double()
            self._departed[number] = self._take(course, first, stop, weights)
            count(stop - first)
        self._base = self._take(self._base, start, stop, None)
        self.position = stop

    def values(self) -> tuple[Tensor, Tensor]:
        """See `Runs`."""
        base = self._query.query.value(self._end(self._base))
        changes = torch.zeros(len(self.numbers), len(base), dtype=torch.float64)
        for row, number in enumerate(self.numbers):
            if number in self._departed:
                changes[row] = self._query.query.value(self._end(self._departed[number])) - base
        return changes, base

    def departures(self, along: Adjoint) -> Tensor:
        """See `Runs`."""
        products = torch.zeros(len(self.numbers), along.queries, dtype=torch.float64)
        for row, number in enumerate(self.numbers):
            if number in self._departed:
                products[row] = _departures(_pair(self._base, self._departed[number]), along)[0]
        return products

    def displacement(self) -> dict[str, Tensor]:
        """See `Runs`."""
        base = self._base.state.params
        states = [self._departed.get(i, self._base).state.params for i in self.numbers]
        return {n: torch.stack([s[n] - p for s in states]) for n, p in base.items()}

    def select(self, numbers: Sequence[int]) -> None:
        """See `Runs`."""
        wanted = set(numbers)
        self.numbers = [i for i in self.numbers if i in wanted]
        self._departed = {i: course for i, course in self._departed.items() if i in wanted}

    def _take(self, course: Course, start: int, stop: int, weights: Tensor | None) -> Course:
        self.steps_taken += stop - start
        return self._run.take(course, start, stop, weights=weights)

    def _end(self, course: Course) -> ModelState:
        at_end = self.position == self._run.last_step
        return self._run.averaged(course, self._base) if at_end else course.state


def _departures(stack: Stack, along: Adjoint) -> Tensor:
    """Return inner products of an adjoint with each replica's displacement from replica 0, ``[L - 1, Q]``."""
    names = list(stack.params)

    def product(adjoint: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        parts = [values.get(n, torch.zeros_like(stack.params[n])) for n in names]
        return torch.cat([_rows(v) for v in parts], dim=1) @ adjoint.double().T

    total = product(along.params, stack.params)
    for key, adjoint in along.optimizer.items():
        total = total + product(adjoint, {n: m[key] for n, m in stack.memory.items() if key in m})
    if along.average is not None and stack.fed:
        total = total + product(along.average, stack.fed)
    for adjoints, values in ((along.buffers, stack.buffers), (along.average_buffers, stack.fed)):
        for name in adjoints.keys() & values.keys():
            total = total + _rows(values[name]) @ adjoints[name].reshape(along.queries, -1).double().T
    return total.cpu()


def _rows(value: Tensor) -> Tensor:
    """Return the displacement of each replica's tensor from that of replica 0, ``[L - 1, n]``."""
    return (value[1:] - value[:1]).reshape(len(value) - 1, -1).double()


def _pair(base: Course, other: Course) -> Stack:
    """Stack two states."""
    (a, b), (fed_a, fed_b) = (base.state, other.state), (base.fed, other.fed)
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
