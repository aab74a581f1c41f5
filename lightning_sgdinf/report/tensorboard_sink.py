"""The report in TensorBoard: histogram, figures, curves over the number of examples left out, and tables as text.

Nothing of TensorBoard is imported: Lightning's logger brings a writer along.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from lightning_sgdinf import plain_text
from lightning_sgdinf.extras import require
from lightning_sgdinf.report.brief import answer
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.report.merged import Curves, ResultPage
from lightning_sgdinf.report.model import said_of_trust
from lightning_sgdinf.report.sparkline import sparkline_text
from lightning_sgdinf.report.tables import Table


def is_tensorboard(logger: Any) -> bool:
    """Return True for Lightning's `TensorBoardLogger`, told by name, without importing either package."""
    return any(kind.__name__ == "TensorBoardLogger" for kind in type(logger).__mro__)


def log_to_tensorboard(report: DrawnReport, logger: Any) -> None:
    """Write a report with a `TensorBoardLogger`'s writer.

    Curves have the number of examples left out as their step, so that several runs lie over each other.
    """
    data, writer = report.data, logger.experiment
    values = data.scores.values[:, data.scores.query_index(data.query)].numpy()
    writer.add_histogram("report/scores", values, bins=np.histogram_bin_edges(values, bins=60).tolist())
    for name, picture in report.pictures.items():
        writer.add_image(f"report/{name}", _pixels(picture), dataformats="HWC")
    for place, curve in enumerate(data.curves):
        tag = "own" if place == 0 else curve.method  # under one name in every run, to lay runs over each other
        for count, error in zip(curve.counts, curve.mean, strict=True):
            writer.add_scalar(f"report/curve/{_tag(tag)}", float(error), global_step=count)
    said = [
        f"**{plain_text.markdown(answer(data))}**",
        *map(plain_text.markdown, said_of_trust(data)),
        *(f"Warning: {plain_text.markdown(warning)}" for warning in data.all_warnings),
    ]
    writer.add_text("report/result", "\n\n".join(said))
    ranking = report.extremes.table
    if report.extremes.harm is not None:
        ranking = ranking.with_column(
            "per epoch (low: it harmed)", [sparkline_text(harm) for harm in report.extremes.harm]
        )
    for table in (ranking, *report.tables_beside_extremes):
        writer.add_text(f"report/{table.name}", markdown(table))


def log_merged_to_tensorboard(merged: ResultPage, logger: Any, *, curves: Curves) -> None:
    """Write figure, tables and curves with a `TensorBoardLogger`'s writer; see `log_to_tensorboard`."""
    writer = logger.experiment
    if merged.figure is not None:
        writer.add_image("report/figure", _pixels(merged.figure[1]), dataformats="HWC")
    for name, curve in curves.items():
        for count, error in curve.items():
            writer.add_scalar(f"report/curve/{_tag(name)}", error, global_step=count)
    for table in merged.tables:
        writer.add_text(f"report/{table.name}", markdown(table))


def markdown(table: Table) -> str:
    """Return a table in Markdown, under its caption; text in it stays text."""
    rows = ([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in table.rows)
    return f"{plain_text.markdown(table.caption)}\n\n{plain_text.markdown_table((table.columns, *rows))}"


def _tag(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_./-]+", "_", text)


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(require("PIL.Image", extra="report").open(io.BytesIO(png)).convert("RGB"))
