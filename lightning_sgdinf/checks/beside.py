"""Checks of results that take no recorded step with example weights, or take them forwards only."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.certificate import Check
from lightning_sgdinf.checks.logged_query import check_logged_query
from lightning_sgdinf.checks.swap import SwapComparison
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, row_warnings


def check_beside(
    run: OpenedRun, query: BoundQuery | None, value: Tensor | None = None
) -> tuple[list[Check], list[str], list[str]]:
    """Compare the query with what the run logged, and swap examples of its first, middle and last steps.

    Args:
        run: The recorded run.
        query: What is asked; ``None`` to swap examples alone.
        value: Its value at the final model, ``[Q]``; computed if it is not given.

    Returns:
        The checks, notes, and sentences on what could not be judged or has no single owner.

    Raises:
        QueryMismatchError: The validation of the final model is another than the run's.
        UntappedLossError: Gradients change by something else than example weights say.
    """
    checks: list[Check] = []
    notes: list[str] = []
    if query is not None:
        checks, notes = check_logged_query(run, query, query.value(run.model) if value is None else value)
    swaps, last = SwapComparison(run), len(run.log) - 1
    swaps.look_at((0, last // 2, last))
    swapped = swaps.value()
    return [*checks, *([] if swapped is None else [swapped])], notes, [*row_warnings(run.objective), *swaps.unjudged]


def remarks_on(run: OpenedRun, query: BoundQuery | None) -> tuple[str, ...]:
    """Return what a reader of counterfactual runs must know besides: what `check_beside` says of run and query.

    Raises:
        QueryMismatchError: As there.
        UntappedLossError: As there, or where weights do not reach the whole loss.
    """
    run.audit()
    _, notes, unjudged = check_beside(run, query)
    return (*run.remarks, *notes, *unjudged)


def checking(bind: Callable[[OpenedRun], BoundQuery], remarks: list[str]) -> Callable[[OpenedRun], None]:
    """Return what checks a run whose loss is asked for, as it is checked for counterfactual runs.

    Args:
        bind: Binds the mean validation loss to a run; where that is a `ConfigurationError` (there are no validation
            data, or several), examples are swapped alone.
        remarks: What a reader of the result must know is added to them.
    """

    def check(run: OpenedRun) -> None:
        try:
            query = bind(run)
        except ConfigurationError:
            query = None
        remarks.extend(remarks_on(run, query))

    return check
