"""Destinations of a report: a page, a folder of files, a Lightning logger."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.report.merged import Curves, ResultPage
from lightning_sgdinf.report.model import ReportData
from lightning_sgdinf.report.tables import write_csv
from lightning_sgdinf.report.tensorboard_sink import is_tensorboard, log_merged_to_tensorboard, log_to_tensorboard
from lightning_sgdinf.report.wandb_sink import is_wandb, log_merged_to_wandb, log_to_wandb


class MetricsLogger(Protocol):
    """The one method of a logger that is needed: Lightning's loggers have it."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take numbers by name."""


Loggers: TypeAlias = "MetricsLogger | Iterable[MetricsLogger] | None"
"""``trainer.logger``, ``trainer.loggers`` or none."""


def write_page(data: ReportData, path: str | Path) -> Path:
    """Write the page alone; an earlier one at the path is replaced, at once and never by half.

    Args:
        data: What to show.
        path: File to write; missing folders are made.

    Returns:
        The path.
    """
    path = Path(path)
    replace_bytes(path, DrawnReport(data).page.encode("utf-8", "replace"))
    return path


def write_report(data: ReportData, folder: str | Path) -> Path:
    """Write the page as ``report.html``, every figure as PNG under ``figures`` and every table as CSV under ``tables``.

    Args:
        data: What to show.
        folder: Made if missing; files of an earlier report with the same names are replaced.

    Returns:
        Path of the page.

    Raises:
        ConfigurationError: The folder is a file.
    """
    return _write(DrawnReport(data), Path(folder))


def _write(report: DrawnReport, folder: Path) -> Path:
    if folder.is_file():
        raise ConfigurationError(
            f"expected a folder for the report, got the file {folder}; for a page alone use write_page"
        )
    for part in ("figures", "tables"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    replace_bytes(folder / "report.html", report.page.encode("utf-8", "replace"))
    for name, picture in report.pictures.items():
        replace_bytes(folder / "figures" / f"{name}.png", picture)
    for table in report.tables:
        write_csv(table, folder / "tables" / f"{table.name}.csv")
    return folder / "report.html"


def write_merged(merged: ResultPage, folder: Path) -> Path:
    """Write a page of results, its figure and its tables, the main one as ``table.csv``; each replaced at once.

    Args:
        merged: What to show.
        folder: Made if missing; files of the same names are replaced.

    Returns:
        Path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for position, table in enumerate(merged.tables):
        write_csv(table, folder / ("table.csv" if position == 0 else f"{table.name}.csv"))
    if merged.figure is not None:
        replace_bytes(folder / "figure.png", merged.figure[1])
    replace_bytes(folder / "page.html", merged.page.encode("utf-8", "replace"))
    return folder / "page.html"


def log_report(
    data: ReportData,
    logger: Loggers,
    *,
    log: str | Path | None = None,
    files: bool = True,
) -> None:
    """Give a report to a Lightning logger, or to each of several.

    Every logger gets the numbers. Weights & Biases also gets the ranking with pictures, tables, figures, curves, the
    page, and scores and record as artifacts; TensorBoard histogram, figures, curves, and tables as text. Loggers that
    keep a folder of their own (CSV, TensorBoard) get page, figures and CSV tables there, under ``report``.

    Args:
        data: What to show.
        logger: ``trainer.logger``, ``trainer.loggers`` or ``None``.
        log: Where the record of the run is, for loggers that keep artifacts.
        files: Write those folders.

    Raises:
        ConfigurationError: Something that has no ``log_metrics``.
        LogError: There is no readable record at ``log``.
    """
    _log(DrawnReport(data), logger, log=log, files=files)


def publish_report(data: ReportData, folder: str | Path, logger: Loggers, *, log: str | Path | None = None) -> Path:
    """Write a report as `write_report` does and give it to loggers as `log_report` does, everything drawn once.

    Args:
        data: What to show.
        folder: As of `write_report`; loggers write no page of their own beside it.
        logger: As of `log_report`.
        log: Likewise.

    Returns:
        Path of the page.

    Raises:
        ConfigurationError: As both do.
        LogError: As `log_report` does.
    """
    report = DrawnReport(data)
    page = _write(report, Path(folder))
    _log(report, logger, log=log, files=False)
    return page


def _log(report: DrawnReport, logger: Loggers, *, log: str | Path | None, files: bool) -> None:
    if logger is None:
        return
    if isinstance(logger, Iterable):
        for single in logger:
            _log(report, single, log=log, files=files)
        return
    if is_wandb(logger):
        log_to_wandb(report, logger, metrics(report.data), log=log)
    else:
        _log_numbers(metrics(report.data), logger)
    if is_tensorboard(logger):
        log_to_tensorboard(report, logger)
    if files and (folder := _folder_of(logger)) is not None:
        _write(report, folder)
    _save(logger)


def log_merged(
    merged: ResultPage, logger: MetricsLogger, *, numbers: Mapping[str, float], curves: Curves, artifact: str = ""
) -> None:
    """Give the results of an experiment to a Lightning logger.

    Every logger gets the numbers. Weights & Biases also gets what each method finds with pictures, tables, figure,
    curves and the page; TensorBoard figure, curves, and tables as text. Loggers that keep a folder of their own get the
    page with its figure and tables there, under ``report``.

    Args:
        merged: What to show.
        logger: Of one process.
        numbers: By name.
        curves: Test error against the number of examples left out, by name.
        artifact: Kind of a W&B artifact that holds all tables; empty for none.

    Raises:
        ConfigurationError: Something that has no ``log_metrics``.
    """
    if is_wandb(logger):
        log_merged_to_wandb(merged, logger, _named(numbers), curves=curves, artifact=artifact)
    else:
        _log_numbers(_named(numbers), logger)
    if is_tensorboard(logger):
        log_merged_to_tensorboard(merged, logger, curves=curves)
    if (folder := _folder_of(logger)) is not None:
        write_merged(merged, folder)
    _save(logger)


def _log_numbers(numbers: Mapping[str, float], logger: MetricsLogger) -> None:
    if not hasattr(logger, "log_metrics"):
        raise ConfigurationError(f"logger: expected a Lightning logger, got {type(logger).__qualname__}")
    logger.log_metrics(dict(numbers))


def _folder_of(logger: MetricsLogger) -> Path | None:
    """Return the place for a report in the folder of a logger that keeps one of its own."""
    folder = getattr(logger, "log_dir", None)
    return Path(folder) / "report" if isinstance(folder, (str, Path)) else None


def _save(logger: MetricsLogger) -> None:
    save: Any = getattr(logger, "save", None)
    if callable(save):
        save()


def metrics(data: ReportData) -> dict[str, float]:
    """Return the numbers of a report, under names that every logger can keep: letters, digits, ``_`` and ``/``."""
    harm = data.scores.harm(data.query)
    numbers: dict[str, float] = {
        "examples": float(len(harm)),
        "share_harmful": float((harm > 0).double().mean()),
        "largest_harm": float(harm.max()),
        "largest_help": float((-harm).max()),
    }
    if data.scores.standard_error is not None:
        errors = data.scores.standard_error[:, data.scores.query_index(data.query)]
        numbers |= {"standard_error/mean": float(errors.mean()), "standard_error/largest": float(errors.max())}
    for change in data.before_after:
        before, after = change.means
        numbers |= {f"{change.metric}/before": before, f"{change.metric}/after": after}
        if change.test is not None and change.test.p_value == change.test.p_value:
            numbers[f"{change.metric}/p_value"] = change.test.p_value
    for place, (name, detection) in enumerate(data.detections.items()):
        for method in ("own",) if place == 0 else (name,):  # under one name in every run, to compare runs by
            numbers |= {
                f"{method}/auroc": detection.auroc,
                f"{method}/average_precision": detection.average_precision,
                f"{method}/found_at_top": float(detection.hits),
            }
    for place, curve in enumerate(data.curves):
        count, error = curve.best()
        for method in ("own",) if place == 0 else (curve.method,):
            numbers |= {f"{method}/best_{curve.metric}": error, f"{method}/best_count": float(count)}
    if data.scores.certificate is not None:
        numbers |= _certified(data.scores.certificate)
    return _named(numbers)


def _certified(certificate: Certificate) -> dict[str, float]:
    """Return the numbers of a certificate, named for what they are about: the whole run, or its last steps."""
    numbers: dict[str, float] = {"warnings": float(len(certificate.warnings))}
    if certificate.amplification is not None:
        numbers["amplification"] = certificate.amplification.factor
    trust = certificate.trust
    if trust is None:
        return numbers
    numbers["trust/left_out"] = float(len(trust.example_ids))
    if not trust.is_whole:
        steps = float(trust.steps - trust.first_step) if trust.steps else math.nan
        ends = {"trust/last_steps_low": trust.low, "trust/last_steps_high": trust.high}
        return numbers | {"trust/last_steps_correlation": trust.correlation, "trust/last_steps": steps, **ends}
    numbers |= {"trust/whole_run_low": trust.low, "trust/whole_run_high": trust.high}
    return numbers if trust.headline is None else numbers | {"trust/whole_run_correlation": trust.headline}


def _named(numbers: Mapping[str, float]) -> dict[str, float]:
    """Name numbers so that every logger can keep them."""
    return {"report/" + re.sub(r"[^A-Za-z0-9_/]+", "_", name): value for name, value in numbers.items()}
