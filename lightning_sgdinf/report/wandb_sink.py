"""The report in a Weights & Biases run; the only file that imports wandb."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sgdinf.extras import require
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.plain_text import encodable
from lightning_sgdinf.ranking import Ranking
from lightning_sgdinf.report.brief import said_first, sureness
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.extremes import Extremes
from lightning_sgdinf.report.images import pixels, png
from lightning_sgdinf.report.merged import Curves, ResultPage, Sheet
from lightning_sgdinf.report.model import ReportData
from lightning_sgdinf.report.sparkline import sparkline_png
from lightning_sgdinf.report.tables import Table

LOG_LIMIT_BYTES = 64 << 20
"""A log up to this size is uploaded whole, a larger one is named by its digest and path."""

MOST_ROWS = 100_000
"""Rows of a table at most; W&B refuses one of more than twice as many."""

EPOCHS = "per epoch (orange, down: it harmed)"
"""Name of the column of what each epoch contributed."""

_LEFT_OUT = "report/left_out"


def is_wandb(logger: Any) -> bool:
    """Return True for Lightning's `WandbLogger`, told by what only it offers, without importing either package."""
    return hasattr(logger, "log_table") and hasattr(logger, "log_image") and hasattr(logger, "experiment")


def log_to_wandb(
    report: DrawnReport, logger: Any, numbers: Mapping[str, float], *, log: str | Path | None = None
) -> None:
    """Log the result with its trust, both ends of the ranking with pictures, all examples, tables, figures, curves, the
    page, scores and record.

    Numbers and sentences are keys of the summary: a chart of one point says nothing. Pictures are also logged on their
    own: offline, those in the cells of a table lie in a folder of their own, and a table's JSON does not show them.

    Args:
        report: What to show.
        logger: A `WandbLogger`, online or offline.
        numbers: By key of the summary.
        log: Where the record of the run is; see `LOG_LIMIT_BYTES`.

    Raises:
        MissingExtraError: wandb is not installed.
        LogError: There is no readable record at ``log``.
    """
    wandb = require("wandb", extra="wandb")
    data, run = report.data, logger.experiment
    if _is_of_another_process(run):
        return
    with _staged_with(run):
        run.config.update({"report": _settings(data)}, allow_val_change=True)
        run.summary.update({**numbers, **_sentences(data)})
        run.log({"report/ranking": _ranking(wandb, report.extremes)})
        _log_tables(logger, (report.all_examples(MOST_ROWS), *report.tables_beside_extremes))
        for name, ranking in (
            ("most-harmful", data.scores.most_harmful(data.shown, data.query)),
            ("most-helpful", data.scores.most_helpful(data.shown, data.query)),
        ):
            images, captions = _pictures(data, ranking)
            if images:
                logger.log_image(f"report/{name}", images=images, caption=captions)
        drawn = {name: _opened(picture) for name, picture in report.pictures.items() if name in report.charts}
        logger.log_image("report/figures", images=list(drawn.values()), caption=[n.replace("-", " ") for n in drawn])
        values = data.scores.values[:, data.scores.query_index(data.query)].numpy()
        run.log({"report/scores": wandb.Histogram(np_histogram=np.histogram(values, bins=60))})
        if data.curves:
            named = {("own" if place == 0 else c.method): c for place, c in enumerate(data.curves)}
            _log_points(run, {n: dict(zip(c.counts, c.mean.tolist(), strict=True)) for n, c in named.items()})
        run.log({"report/page": wandb.Html(encodable(report.page), inject=False)})
        _log_artifacts(wandb, run, data, None if log is None else Path(log))


def log_merged_to_wandb(
    merged: ResultPage, logger: Any, numbers: Mapping[str, float], *, curves: Curves, artifact: str = ""
) -> None:
    """Log what each method finds with pictures, tables, figure, curves and the page.

    Args:
        merged: What to show.
        logger: A `WandbLogger`, online or offline.
        numbers: By key of the summary.
        curves: Test error against the number left out, by name.
        artifact: Kind of an artifact that holds all tables; empty for none.

    Raises:
        MissingExtraError: wandb is not installed.
    """
    wandb = require("wandb", extra="wandb")
    run = logger.experiment
    if _is_of_another_process(run):
        return
    with _staged_with(run):
        run.summary.update(dict(numbers))
        for sheet in merged.sheets:
            run.log({"report/ranking": _harmful_table(wandb, sheet)})
            for method, examples in sheet.rows.items():
                images = [pixels(example) for _, example in examples]
                captions = [_caption(number, example) for number, example in examples]
                logger.log_image(f"report/{method}-examples", images=images, caption=captions)
        _log_tables(logger, merged.tables)
        if merged.figure is not None:
            logger.log_image("report/figure", images=[_opened(merged.figure[1])])
        if curves:
            _log_points(run, curves)
        run.log({"report/page": wandb.Html(encodable(merged.page), inject=False)})
        if artifact:
            holder = wandb.Artifact(f"{artifact}-{run.id}", type=artifact)
            for table in merged.tables:
                columns, rows = _uniform(table)
                holder.add(wandb.Table(columns=columns, data=rows), table.name)
            run.log_artifact(holder)


def _settings(data: ReportData) -> dict[str, Any]:
    """Return what a dashboard can filter and group reports by, whoever made the run."""
    certificate = data.scores.certificate
    known = {name: data.scores.provenance.get(name) for name in ("estimator", "log", "validation_examples")}
    return {
        "query": encodable(data.query_name),
        "better": data.better,
        "examples": len(data.scores),
        "certificate": None if certificate is None else certificate.level,
        **{name: value for name, value in known.items() if value is not None},
    }


def _sentences(data: ReportData) -> dict[str, str]:
    """Return what a table of runs should say beside its numbers."""
    trust = None if data.scores.certificate is None else data.scores.certificate.trust
    verdict, reason = sureness(data)
    told = {
        "report/result": "\n".join(said_first(data)),
        "report/sure": f"{verdict} {reason}",
        "report/trust/of": "" if trust is None else trust.where,
        "report/warning": "\n".join(data.all_warnings),
    }
    return {name: encodable(text) for name, text in told.items() if text}


def finish_run(*, failed: bool) -> None:
    """End the run in progress, if there is one: a logger made later in this process would go on in it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.run.finish(exit_code=int(failed))


def _is_of_another_process(run: Any) -> bool:
    """Return True for the stand-in that Lightning gives: only the first process of several logs."""
    return type(run).__name__ == "_DummyExperiment"


def _log_tables(logger: Any, tables: Sequence[Table]) -> None:
    for table in tables:
        columns, rows = _uniform(table)
        logger.log_table(f"report/{table.name}", columns=columns, data=rows)


def _harmful_table(wandb: Any, sheet: Sheet) -> Any:
    """Return a table of the examples that each method finds most harmful, a row per method and rank."""
    rows = [
        [wandb.Image(_opened(png(example))), method, rank, number, example.label, example.true_label or example.label]
        for method, examples in sheet.rows.items()
        for rank, (number, example) in enumerate(examples, 1)
    ]
    return wandb.Table(columns=["image", "method", "rank", "example id", "label", "true label"], data=rows)


def _ranking(wandb: Any, extremes: Extremes) -> Any:
    """Return a table with a column of pictures, if there are any, and one of the epochs' contributions."""
    columns, rows = _uniform(extremes.table)
    if extremes.has_images:
        columns = ["image", *columns]
        shown = [extremes.examples.get(i) for i in extremes.example_ids]
        cells = [wandb.Image(_opened(png(e))) if e is not None and e.image is not None else None for e in shown]
        rows = [[cell, *row] for cell, row in zip(cells, rows, strict=True)]
    if extremes.harm is not None:
        columns = [*columns, EPOCHS]
        lines = [wandb.Image(_opened(sparkline_png(harm)), caption=_in_words(-harm)) for harm in extremes.harm]
        rows = [[*row, line] for row, line in zip(rows, lines, strict=True)]
    return wandb.Table(columns=columns, data=rows)


def _in_words(harm: np.ndarray) -> str:
    return ", ".join(f"{value:+.2g}" for value in harm[:20]) + (", ..." if len(harm) > 20 else "")


def _log_points(run: Any, curves: Curves) -> None:
    """Log each curve as a metric over the number left out, so that runs can be compared."""
    run.define_metric(_LEFT_OUT, hidden=True, summary="none")
    for name in curves:  # by name: Lightning's logger has claimed what any pattern could match
        run.define_metric(f"report/curve/{name}", step_metric=_LEFT_OUT, summary="min")  # the last is where a grid ends
    for count in sorted({count for curve in curves.values() for count in curve}):
        values = {f"report/curve/{name}": curve[count] for name, curve in curves.items() if count in curve}
        run.log({_LEFT_OUT: count, **values})


def _log_artifacts(wandb: Any, run: Any, data: ReportData, log: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.h5"
        data.scores.save(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        scores = wandb.Artifact(
            f"scores-{run.id}",
            type="scores",
            description="Change of each query had each training example been left out; read with Scores.load.",
            metadata={
                "sha256": digest,
                "queries": list(map(encodable, data.scores.queries)),
                "better": list(data.scores.better),
                "examples": len(data.scores),
                "provenance": json.loads(encodable(json.dumps(dict(data.scores.provenance), ensure_ascii=False))),
            },
        )
        scores.add_file(str(file))
        run.log_artifact(scores)
    if log is not None:
        run.log_artifact(_record(wandb, run, log))


def _record(wandb: Any, run: Any, path: Path) -> Any:
    """Return the record of a training run: its segments, or, where they are large, their place."""
    with RunLog.open(path) as log:
        about = {"digest": log.digest, "steps": len(log), "bytes": log.size_bytes, "finished": log.finished}
    artifact = wandb.Artifact(
        f"record-{run.id}",
        type="training-record",
        description="Record of the training run; read with RunLog.open.",
        metadata={**about, "path": str(path.resolve())},
    )
    if about["bytes"] <= LOG_LIMIT_BYTES:
        for file in sorted(path.glob("*.h5")):  # sealed; they never change again
            artifact.add_file(str(file), name=f"{path.name}/{file.name}", skip_cache=True)
    else:
        artifact.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
    return artifact


@contextmanager
def _staged_with(run: Any) -> Iterator[None]:
    """Keep with the run what tables and artifacts hold: offline, wandb would keep it in the user's home until it is
    uploaded, and the run's folder would not be all there is to move."""
    variable = "WANDB_DATA_DIR"
    if getattr(run, "offline", False) is not True or variable in os.environ:
        yield
        return
    os.environ[variable] = str(Path(run.sync_dir) / "data")
    try:
        yield
    finally:
        os.environ.pop(variable, None)


def _uniform(table: Table) -> tuple[list[str], list[list[Any]]]:
    # A wandb table wants one type per column; ours are uniform but for whole numbers among fractions.
    columns: list[list[Any]] = [list(column) for column in zip(*table.rows, strict=True)]
    for cells in columns:
        if any(isinstance(cell, float) for cell in cells):
            cells[:] = [float(cell) if isinstance(cell, int) else cell for cell in cells]
        cells[:] = [encodable(cell) if isinstance(cell, str) else cell for cell in cells]
    return list(map(encodable, table.columns)), [list(row) for row in zip(*columns, strict=True)]


def _pictures(data: ReportData, ranking: Ranking) -> tuple[list[Any], list[str]]:
    images: list[Any] = []
    captions: list[str] = []
    for row in ranking:
        example = data.examples.get(row.example_id)
        if example is not None and example.image is not None:
            images.append(pixels(example))
            captions.append(f"{_caption(row.example_id, example)}: {row.score:+.3g}")
    return images, captions


def _caption(number: int, example: Example) -> str:
    return encodable(
        f"#{number} {example.label}" + (f", should be {example.true_label}" if example.mislabelled else "")
    )


def _opened(content: bytes) -> Any:
    return require("PIL.Image", extra="report").open(io.BytesIO(content))
