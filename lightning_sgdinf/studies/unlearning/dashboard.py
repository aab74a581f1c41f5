"""A seed in a Lightning logger: a run of its own, with numbers of every method, the table and examples of the set."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from lightning_sgdinf.report import log_merged
from lightning_sgdinf.report.unlearning import ForgettingPage
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.studies.job_logger import begin_run
from lightning_sgdinf.studies.unlearning.tables import Rows


def log_seed(
    parts: Parts, page: ForgettingPage, rows: Rows, *, folder: Path, cell: str, ignored: Container[str]
) -> None:
    """Log the results of a seed to the logger that the configuration names, if it names one.

    Args:
        parts: The objects of the configuration.
        page: What the page shows.
        rows: The results of the seed, by method.
        folder: Of the seed; a logger that would keep its files in the folder of all keeps them here.
        cell: Name of the cell.
        ignored: Groups of the configuration that the job does not read.
    """
    logger = begin_run(parts, folder, kind="unlearning", cell=cell, ignored=ignored)
    if logger is None:
        return
    numbers = {
        f"{method}/{name}": float(value)
        for method, row in rows.items()
        for name, value in {**row.get("measures", {}), "epochs": row.get("epochs"), "r": row.get("factor")}.items()
        if value is not None
    }
    log_merged(page, logger, numbers=numbers, curves={})
