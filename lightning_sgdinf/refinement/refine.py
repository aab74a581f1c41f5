"""Verify the few examples that matter: any estimate of all, real counterfactual runs of those at its two ends.

An influence score of a network says roughly where the extreme examples are, not which they are. `refine` spends a
budget of real runs on finding out: every value it measured is the truth, the others stay estimates, and the result says
which is which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.refinement.forecast import forecast
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.truth import Counterfactuals
from lightning_sgdinf.truth.plan import Plan, make_plan
from lightning_sgdinf.truth.runs import Runs


@dataclass(slots=True)
class Refinement:
    """The values of all examples on the way from estimate to truth.

    Attributes:
        truth: Takes the runs.
        plan: Every single example.
        values: The best known value of each, float64 ``[N, Q]``.
        verified: True where an example is measured, bool ``[N]``.
        column: The query whose ends matter.
        steps: Training steps of counterfactual runs so far.
        forecast: Forecasts the changes at the end of runs that stand before the same step.
    """

    truth: Counterfactuals
    plan: Plan
    values: Tensor
    verified: Tensor
    column: int
    steps: int = 0
    forecast: Callable[[Counterfactuals, Sequence[Runs]], list[Tensor]] = forecast

    def begin(self, count: int) -> list[Runs]:
        """Return the runs of the examples at both ends, but for those that are measured."""
        chosen = self.both_ends(range(len(self.values)), count)
        return list(self.truth.chunks(self.plan, [i for i in chosen if not self.verified[i]]))

    def both_ends(self, among: Sequence[int], count: int) -> list[int]:
        """Return the examples with the smallest and the largest values among some, half of each."""
        order = sorted(among, key=lambda i: (float(self.values[i, self.column]), i))
        low = min(count, len(order)) // 2
        return order[:low] + order[len(order) - (min(count, len(order)) - low) :]

    def count(self, steps: int) -> None:
        """Accumulate training steps."""
        self.steps += steps

    def finish(self, runs: Runs) -> None:
        """Take runs to the end and store their values as measured."""
        runs.advance(self.plan.stop, self.count)
        self.values[runs.numbers] = runs.values()[0]
        self.verified[runs.numbers] = True


class Strategy(Protocol):
    """Chooses the examples to spend real runs on."""

    def spend(self, refinement: Refinement, budget: float) -> None:
        """Measure examples.

        Args:
            refinement: The known values; measured ones are stored there.
            budget: Share of the cost of the full truth, in ``(0, 1]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Screening:
    """Runs to the end for the examples at both ends of the estimate, as many as the budget allows."""

    def spend(self, refinement: Refinement, budget: float) -> None:
        """Measure examples; see `Strategy`."""
        for runs in refinement.begin(_whole(budget * len(refinement.values))):
            refinement.finish(runs)


@dataclass(frozen=True, slots=True)
class Halving:
    """Successive halving: many runs are begun, and at each rung those that are forecast at neither end are given up.

    A run that was taken to a rung is forecast by `lightning_sgdinf.refinement.forecast`, which walks back to the rung
    besides (the cost of a few training runs). Values of runs that were given up stay their last forecasts.

    Attributes:
        rungs: Where runs are compared, as parts of the run, increasing, in ``(0, 1)``.
        extremes: How many examples of each end matter.
        final: Runs taken to the end: twice ``extremes``, and this part of the budget.
    """

    rungs: tuple[float, ...] = (0.3,)
    extremes: int = 10
    final: float = 0.4

    def __post_init__(self) -> None:
        marks = (0.0, *self.rungs, 1.0)
        if any(a >= b for a, b in pairwise(marks)):
            raise ConfigurationError(f"Halving(rungs): expected increasing numbers in (0, 1), got {self.rungs}")
        if self.extremes < 1 or not 0 < self.final <= 1:
            raise ConfigurationError(
                f"Halving: expected extremes >= 1 and final in (0, 1], got {self.extremes} and {self.final}"
            )

    def spend(self, refinement: Refinement, budget: float) -> None:
        """Measure examples; see `Strategy`."""
        total = refinement.plan.stop
        rungs = sorted({min(max(round(r * total), 1), total - 1) for r in self.rungs}) if total > 1 else []
        first, *later = self._counts(len(refinement.values), budget, [0.0, *(r / total for r in rungs), 1.0])
        candidates = refinement.begin(first)
        for rung, count in zip(rungs, later, strict=True):
            for runs in candidates:
                runs.advance(rung, refinement.count)
            for runs, values in zip(candidates, refinement.forecast(refinement.truth, candidates), strict=True):
                refinement.values[runs.numbers] = values
            alive = refinement.both_ends([i for runs in candidates for i in runs.numbers], count)
            for runs in candidates:
                runs.select(alive)
        for runs in candidates:
            refinement.finish(runs)

    def _counts(self, examples: int, budget: float, marks: Sequence[float]) -> list[int]:
        """Return the number of runs to continue from each mark but the last; together they cost the budget.

        The same share is given up at each.
        """
        runs, lengths = budget * examples, np.diff(marks)

        def stages(first: float, last: float) -> np.ndarray:
            return first * (last / first) ** (np.arange(len(lengths)) / max(1, len(lengths) - 1))

        last = min(runs, 2 * self.extremes + self.final * runs)
        if float(stages(examples, last) @ lengths) <= runs:
            last = _largest(lambda x: float(stages(examples, x) @ lengths) <= runs, last, examples)
            return [_whole(x) for x in stages(examples, last)]
        first = _largest(lambda x: float(stages(x, last) @ lengths) <= runs, last, examples)
        return [_whole(x) for x in stages(first, last)]


def refine(
    scores: Scores,
    truth: Counterfactuals,
    *,
    budget: float = 0.25,
    strategy: Strategy | None = None,
    query: int | str = 0,
) -> Scores:
    """Measure the examples at both ends of an estimate by training again without them.

    Args:
        scores: Any estimate of the change of the same queries.
        truth: The opened record; see `InfluenceRunner.truth`.
        budget: Allowed cost of the runs, as a share of measuring every example, in ``(0, 1]``.
        strategy: Chooses the examples to spend them on; `Halving` if ``None``.
        query: The query whose ends matter; of measured examples all queries are.

    Returns:
        The scores, measured values in the place of estimates; ``verified`` says which those are, and
        ``provenance["refined"]`` the cost.

    Raises:
        ConfigurationError: A budget out of range, or scores of other examples or queries.
        SgdInfluenceError: What `Counterfactuals.measure` and a walk raise.
    """
    began, column = time.perf_counter(), scores.query_index(query)
    if not 0 < budget <= 1:
        raise ConfigurationError(f"budget: expected a share in (0, 1], got {budget}")
    if len(scores) != truth.examples or scores.queries != truth.query.names:
        raise ConfigurationError(
            f"refine: expected scores of {truth.examples} examples for {list(truth.query.names)}, got {len(scores)} "
            f"for {list(scores.queries)}; open the truth with the query of the scores"
        )
    chosen = strategy or Halving()
    plan = make_plan(truth.log, truth.examples, None)
    verified = truth.verify()
    known = torch.zeros(len(scores), dtype=torch.bool) if scores.verified is None else scores.verified.clone()
    refinement = Refinement(truth, plan, scores.values.clone(), known, column)
    idle = torch.from_numpy(plan.first >= plan.stop)  # never drawn, so nothing changes
    refinement.values[idle], refinement.verified[idle] = 0.0, True
    chosen.spend(refinement, budget)
    count = int(refinement.verified.sum())
    cost = refinement.steps / max(1, int(plan.cost.sum()))
    note = (
        f"{count} of {len(scores)} values were measured by training again without the example, at {100 * cost:.0f} % "
        "of the cost of measuring all; the others are estimates."
    )
    certificate = scores.certificate
    if certificate is not None:
        notes = (*certificate.notes, note, *truth.notes(verified, count, count))
        certificate = replace(certificate, notes=notes)
    refined = {
        "budget": budget,
        "cost": cost,
        "steps": refinement.steps,
        "measured": count,
        "strategy": repr(chosen),
        "seconds": time.perf_counter() - began,
    }
    return replace(
        scores,
        values=refinement.values,
        per_epoch=None,
        verified=refinement.verified,
        certificate=certificate,
        provenance={**scores.provenance, "refined": refined},
    )


def _whole(runs: float) -> int:
    """Round a number of runs down; at least one for each end."""
    return max(2, int(runs + 1e-9))


def _largest(fits: Callable[[float], bool], low: float, high: float) -> float:
    """Return the largest number in a range that fits, if smaller ones do."""
    if fits(high):
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
