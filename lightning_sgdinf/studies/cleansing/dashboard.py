"""A repeat in a Lightning logger: a run of its own, whose curves a dashboard averages over seeds."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lightning_sgdinf.report import log_merged
from lightning_sgdinf.studies.merged import merged_runs
from lightning_sgdinf.studies.results import RunResults


def log(results: RunResults, logger: Any) -> None:
    """Log the results of a repeat: numbers, curves, tables, figure, page, and the most harmful examples.

    Args:
        results: With their folder.
        logger: As `begin` returned it.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    base = {point.mode: point.measured.test_error for point in results.points if not point.method}
    for point in results.points:
        if point.method:
            curve = curves[f"{point.mode}/{point.method}"]
            curve.setdefault(0, base[point.mode])
            curve[point.count] = point.measured.test_error
    numbers = {f"{mode}/nothing_left_out": error for mode, error in base.items()}
    for name, cost in results.methods.items():
        known = {"seconds": cost.seconds, "auroc": cost.auroc, "average_precision": cost.average_precision}
        numbers |= {f"{name}/{what}": value for what, value in known.items() if value is not None}
    for choice in results.choices:
        place = f"{choice.mode}/{choice.method}/{choice.strategy}"
        numbers |= {f"{place}/test_error": choice.after, f"{place}/left_out": float(choice.count)}
    log_merged(merged_runs({results.cell: [results]}, ()), logger, numbers=numbers, curves=curves)
