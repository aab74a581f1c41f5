"""Checks of results that take no recorded step with example weights, or take them forwards only."""

from __future__ import annotations

from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.certificate import Check
from lightning_sgdinf.checks.logged_query import check_logged_query
from lightning_sgdinf.checks.swap import SwapComparison
from lightning_sgdinf.replay import OpenedRun, row_warnings


def check_beside(run: OpenedRun, query: BoundQuery, value: Tensor) -> tuple[list[Check], list[str], list[str]]:
    """Compare the query with what the run logged, and swap examples of its first, middle and last steps.

    Args:
        run: The recorded run.
        query: What is asked.
        value: Its value at the final model, ``[Q]``.

    Returns:
        The checks, notes, and sentences on what could not be judged or has no single owner.

    Raises:
        QueryMismatchError: The validation of the final model is another than the run's.
        UntappedLossError: Gradients change by something else than example weights say.
    """
    checks, notes = check_logged_query(run, query, value)
    swaps, last = SwapComparison(run), len(run.log) - 1
    swaps.look_at((0, last // 2, last))
    swapped = swaps.value()
    return [*checks, *([] if swapped is None else [swapped])], notes, [*row_warnings(run.objective), *swaps.unjudged]


def remarks_on(run: OpenedRun, query: BoundQuery) -> tuple[str, ...]:
    """Return what a reader of counterfactual runs must know besides: what `check_beside` says of run and query.

    Raises:
        QueryMismatchError: As there.
        UntappedLossError: As there, or where weights do not reach the whole loss.
    """
    run.audit()
    _, notes, unjudged = check_beside(run, query, query.value(run.model))
    return (*notes, *unjudged)
