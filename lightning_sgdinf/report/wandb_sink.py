"""The report in a Weights & Biases run; the only file that imports wandb."""

from __future__ import annotations

import io
from typing import Any

from lightning_sgdinf.extras import require
from lightning_sgdinf.ranking import Ranking
from lightning_sgdinf.report.figures import all_figures, contact_sheets
from lightning_sgdinf.report.images import pixels
from lightning_sgdinf.report.model import ReportData
from lightning_sgdinf.report.page import render_page
from lightning_sgdinf.report.style import to_png
from lightning_sgdinf.report.tables import Table, all_tables


def is_wandb(logger: Any) -> bool:
    """Whether a logger is Lightning's `WandbLogger`, told by what only it offers, without importing either package."""
    return hasattr(logger, "log_table") and hasattr(logger, "log_image") and hasattr(logger, "experiment")


def log_to_wandb(data: ReportData, logger: Any) -> None:
    """Log tables, example pictures, figures and the page to the run of a `WandbLogger`, online or offline.

    Pictures are logged on their own and not as cells of a table: offline, those of a table are not in the run's folder.

    Raises:
        MissingExtraError: wandb is not installed.
    """
    wandb = require("wandb", extra="wandb")
    for table in all_tables(data):
        columns, rows = _uniform(table)
        logger.log_table(f"report/{table.name}", columns=columns, data=rows)
    for name, ranking in (
        ("most-harmful", data.scores.most_harmful(data.shown, data.query)),
        ("most-helpful", data.scores.most_helpful(data.shown, data.query)),
    ):
        images, captions = _pictures(data, ranking)
        if images:
            logger.log_image(f"report/{name}-examples", images=images, caption=captions)
    drawn = {**all_figures(data), **contact_sheets(data)}
    for name, figure in drawn.items():
        logger.log_image(f"report/{name}-figure", images=[_as_image(to_png(figure))])
    logger.experiment.log({"report/page": wandb.Html(render_page(data), inject=False)})


def _uniform(table: Table) -> tuple[list[str], list[list[Any]]]:
    # A wandb table wants one type per column; ours are uniform but for whole numbers among fractions.
    columns: list[list[Any]] = [list(column) for column in zip(*table.rows, strict=True)]
    for cells in columns:
        if any(isinstance(cell, float) for cell in cells):
            cells[:] = [float(cell) if isinstance(cell, int) else cell for cell in cells]
    return list(table.columns), [list(row) for row in zip(*columns, strict=True)]


def _pictures(data: ReportData, ranking: Ranking) -> tuple[list[Any], list[str]]:
    images: list[Any] = []
    captions: list[str] = []
    for row in ranking:
        example = data.examples.get(row.example_id)
        if example is not None and example.image is not None:
            truth = f", truly {example.true_label}" if example.mislabelled else ""
            images.append(pixels(example))
            captions.append(f"#{row.example_id} {example.label}{truth}: {row.score:+.3g}")
    return images, captions


def _as_image(content: bytes) -> Any:
    return require("PIL.Image", extra="cli").open(io.BytesIO(content))
