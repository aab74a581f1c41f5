"""Curves of a cleansing job: what a measure is after training again without the first examples of each ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lightning_sgdinf.cleansing import unless_diverged
from lightning_sgdinf.evaluation import CleansingCurve
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


def removal_curves(
    scores: Mapping[str, Scores],
    measure: Callable[[Selection], float],
    counts: Sequence[int],
    *,
    chosen: Selection,
    **labels: Any,
) -> tuple[CleansingCurve, ...]:
    """Return a curve per method; a number of examples without which training diverges is no point of it.

    Args:
        scores: By name of the method.
        measure: After training again with a selection.
        counts: Numbers of examples to leave out; none for no curves.
        chosen: What was chosen by the first ranking, for its curve to mark; nothing is marked if it has new labels.
        **labels: Further arguments of `CleansingCurve`.
    """
    curves = []
    for method, ranking in scores.items() if counts else ():
        order = ranking.order().tolist()
        tried = {
            count: unless_diverged(count, partial(measure, Selection(drop=tuple(order[:count]))))
            for count in (0, *counts)
        }
        known = {count: value for count, value in tried.items() if value is not None}
        marked = None if curves or chosen.relabel else (len(chosen), measure(chosen))
        curves.append(
            CleansingCurve(method=method, counts=tuple(known), errors=list(known.values()), chosen=marked, **labels)
        )
    return tuple(curves)
