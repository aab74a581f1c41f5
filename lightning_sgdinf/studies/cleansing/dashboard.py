"""A repeat in a Lightning logger: a run of its own, whose curves a dashboard averages over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from typing import Any

from lightning_sgdinf.report import log_merged
from lightning_sgdinf.studies.job import Parts, main_groups
from lightning_sgdinf.studies.merged import merged_runs
from lightning_sgdinf.studies.results import RunResults


def begin(parts: Parts, folder: Path, *, cell: str, ignored: Container[str]) -> Any:
    """Return the logger that the configuration names, with the repeat's settings logged: mistakes show at once.

    Args:
        parts: The objects of the configuration.
        folder: Of the repeat; a logger that would keep its files in the folder of all repeats keeps them here.
        cell: Name of the cell.
        ignored: Groups of the configuration that the job does not read.

    Returns:
        The logger; ``None`` if there is none.
    """
    if parts.logger is None:
        return None
    given = parts.config["logger"]
    changed = {}
    if given.get("save_dir") == parts.config["output_dir"]:
        changed["save_dir"] = str(folder)
    if "job_type" in given and given["job_type"] == parts.choices.get("estimator"):  # no estimator ranks here alone
        changed["job_type"] = "cleansing"
    folder.mkdir(parents=True, exist_ok=True)  # W&B complains of a place that is not there yet
    logger = parts.logger(**changed)
    groups = {group: choice for group, choice in main_groups(parts.choices).items() if group not in ignored}
    logger.log_hyperparams({"seed": parts.seed, "cell": cell, **groups})
    return logger


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
