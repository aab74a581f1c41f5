"""A repeat in a Lightning logger: a run of its own, whose curves a dashboard averages over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from typing import Any

from lightning_sgdinf.report import log_merged
from lightning_sgdinf.tasks.job import Parts
from lightning_sgdinf.tasks.merging import merged_runs
from lightning_sgdinf.tasks.outcome import groups_of
from lightning_sgdinf.tasks.results import RunResults


def begin(parts: Parts, folder: Path, *, cell: str, aside: Container[str]) -> Any:
    """The logger that the configuration names, told what the repeat is: mistakes in it are seen before hours of work.

    Args:
        parts: What the configuration gave.
        folder: Of the repeat; a logger that would keep its files in the folder of all repeats keeps them here.
        cell: Name of the cell.
        aside: Groups of the configuration that the job does not look at.

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
    groups = {group: choice for group, choice in groups_of(parts.choices).items() if group not in aside}
    logger.log_hyperparams({"seed": parts.seed, "cell": cell, **groups})
    return logger


def log(found: RunResults, logger: Any) -> None:
    """What a repeat found: numbers, curves, tables, figure, page, and what is found most harmful.

    Args:
        found: With the folder it is kept in.
        logger: As `begin` returned it.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    base = {point.mode: point.measured.test_error for point in found.points if not point.method}
    for point in found.points:
        if point.method:
            curve = curves[f"{point.mode}/{point.method}"]
            curve.setdefault(0, base[point.mode])
            curve[point.count] = point.measured.test_error
    numbers = {f"{mode}/nothing_left_out": error for mode, error in base.items()}
    for name, cost in found.methods.items():
        known = {"seconds": cost.seconds, "auroc": cost.auroc, "average_precision": cost.average_precision}
        numbers |= {f"{name}/{what}": value for what, value in known.items() if value is not None}
    for choice in found.choices:
        place = f"{choice.mode}/{choice.method}/{choice.strategy}"
        numbers |= {f"{place}/test_error": choice.after, f"{place}/left_out": float(choice.count)}
    log_merged(merged_runs({found.cell: [found]}, ()), logger, numbers=numbers, curves=curves)
