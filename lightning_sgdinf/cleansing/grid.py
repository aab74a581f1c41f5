"""Numbers of examples that a strategy tries."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

from lightning_sgdinf.cleansing.base import CleansingContext, CleansingStrategy
from lightning_sgdinf.cleansing.infeasible import InfeasibleError, InfeasibleWarning, report_infeasible
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


def checked_grid(grid: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return counts as a tuple.

    Raises:
        ConfigurationError: There are none, or they do not increase from 1 or more.
    """
    if grid is None:
        return None
    counts = tuple(grid)
    if not counts:
        raise ConfigurationError(
            "grid: expected at least one count to try, got none; leave grid out, or give null, for 3, 10, 30, 100 and "
            "so on. To change nothing, take TopK(0): cleansing=top_k cleansing.k=0"
        )
    if counts[0] < 1 or any(a >= b for a, b in pairwise(counts)):
        raise ConfigurationError(
            f"grid: expected counts that increase from 1 or more, got {counts}; 0 is always tried."
        )
    return counts


def default_grid(total: int) -> tuple[int, ...]:
    """Return 3, 10, 30, 100 and so on, up to half of ``total`` examples; one count if there are two examples."""
    counts = tuple(step * 10**power for power in range(len(str(total))) for step in (1, 3))
    return tuple(count for count in counts[1:] if 2 * count <= total) or (1,)


def selections(
    grid: Sequence[int] | None,
    treatment: Callable[[int], CleansingStrategy],
    scores: Scores,
    context: CleansingContext,
    query: int | str,
) -> dict[int, Selection]:
    """Return the selections to be tried, by count; all are looked at before anything is trained.

    Args:
        grid: Counts; those of `default_grid` if ``None``.
        treatment: Makes the strategy for one count.
        scores: Of ``N`` examples.
        context: Says what becomes of counts that are not below ``N``: an error, or a warning, and they are not tried.
        query: To go by.

    Raises:
        ConfigurationError: A count of ``grid`` leaves too little, and that is refused. One of `default_grid`, for which
            nobody has asked, is not tried then, with a warning.
    """
    total = len(scores)
    counts = default_grid(total) if grid is None else tuple(grid)
    if beyond := [count for count in counts if count >= total]:
        report_infeasible(
            f"grid: expected counts below {total}, the size of the training set, got {beyond}", context.on_excess
        )
    chosen: dict[int, Selection] = {}
    for count in counts:
        if count >= total:
            continue
        try:
            chosen[count] = treatment(count).select(scores, context, query)
        except InfeasibleError as error:
            if grid is not None:
                raise
            warnings.warn(f"{count} examples changed: not tried, smaller counts are. {error}", InfeasibleWarning, 3)
    return chosen
