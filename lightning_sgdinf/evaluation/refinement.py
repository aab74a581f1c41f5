"""The worth of verified examples: cost of real runs against agreement with the full truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sgdinf.evaluation.agreement import Agreement, measure_agreement
from lightning_sgdinf.refinement import Strategy, refine
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.truth import Counterfactuals


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementPoint:
    """One budget.

    Attributes:
        budget: Share of the full truth's cost that could be spent.
        cost: Share that was spent.
        measured: How many examples were measured.
        agreement: Of the refined scores with the full truth.
    """

    budget: float
    cost: float
    measured: int
    agreement: Agreement


def refinement_curve(
    scores: Scores,
    truth: Counterfactuals,
    full: Scores,
    *,
    budgets: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
    strategy: Strategy | None = None,
    query: int | str = 0,
    k: int = 10,
) -> tuple[RefinementPoint, ...]:
    """Refine scores at several budgets and compare each with the full truth.

    Args:
        scores: The estimate.
        truth: The opened record.
        full: The full truth, ``truth.measure().scores()``.
        budgets: Shares of its cost, in ``(0, 1]``.
        strategy: As for `refine`.
        query: The query whose ends matter.
        k: How many examples of each end are compared.

    Raises:
        ConfigurationError: What `refine` and `measure_agreement` refuse.
    """
    column = scores.query_index(query)
    points = []
    for budget in budgets:
        refined = refine(scores, truth, budget=budget, strategy=strategy, query=query)
        spent = refined.provenance["refined"]
        assert isinstance(spent, dict)
        cost, measured = spent["cost"], spent["measured"]
        assert isinstance(cost, float)
        assert isinstance(measured, int)
        agreement = measure_agreement(refined.values[:, column], full.values[:, column], k=k)
        points.append(RefinementPoint(budget=budget, cost=cost, measured=measured, agreement=agreement))
    return tuple(points)
