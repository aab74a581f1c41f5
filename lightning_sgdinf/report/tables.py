"""The tables of a report: plain rows that the page shows, CSV files keep and loggers take."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.plain_text import csv_cell
from lightning_sgdinf.ranking import Ranking, score_name, sign_sentence
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.model import ReportData, method_label

Cell: TypeAlias = "str | int | float | None"

_MOST_COLUMNS = 40
_LONGEST_CELL = 300


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        name: For file names and loggers: lower case, no spaces.
        caption: One line that says what it shows, and the meaning of its signs.
        columns: Names of the columns.
        rows: As many cells each as there are columns.

    Raises:
        ConfigurationError: A row of another length.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ConfigurationError(
                    f"table {self.name}: expected {len(self.columns)} cells in a row, one per column, got {len(row)} "
                    f"in row {number}"
                )

    def with_column(self, name: str, cells: Sequence[Cell]) -> Table:
        """Return the table with one more column, a cell for each row."""
        rows = tuple((*row, cell) for row, cell in zip(self.rows, cells, strict=True))
        return replace(self, columns=(*self.columns, name), rows=rows)


def ranking_table(data: ReportData, ranking: Ranking, name: str) -> Table:
    """Return a ranking with the labels, predictions and columns of its examples."""
    column = score_name(ranking.query, ranking.better)
    rows: list[tuple[Cell, ...]] = []
    verified = ["yes" if measured else "no" for measured in ranking.verified or ()] or [None] * len(ranking)
    errors = ranking.standard_errors or (None,) * len(ranking)
    for row, error, measured in zip(ranking, errors, verified, strict=True):
        example = data.examples.get(row.example_id)
        label = row.label if row.label is not None else (example.label if example is not None else None)
        truth = example.true_label if example is not None else None
        prediction = example.prediction if example is not None else ""
        corrupt = "yes" if row.example_id in data.known_corrupt else ""
        rows.append((row.rank, row.example_id, label, truth, prediction, corrupt, row.score, error, measured))
    described = ("rank", "example id", "label", "true label", "prediction", "known corrupt")
    columns = (*described, column, "standard error", "verified")
    shown = [data.examples.get(i) for i in ranking.example_ids]
    own = list(dict.fromkeys(name for example in shown if example is not None for name in example.row))[:_MOST_COLUMNS]
    more = [_uniform([None if example is None else example.row.get(name) for example in shown]) for name in own]
    whole = tuple((*row, *(column[place] for column in more)) for place, row in enumerate(rows))
    heads = (f"{name} of the row" if name in columns else name for name in own)
    return _without_empty_columns(Table(name, ranking.header, (*columns, *heads), whole))


def all_examples_table(data: ReportData, *, most: int) -> Table:
    """Return every training example, the most harmful first, with its scores for every query and by every method.

    Args:
        data: The report.
        most: Rows at most; of more examples those at both ends of the ranking.
    """
    order, total = data.scores.order(data.query).tolist(), len(data.scores)
    caption = f"All {total:,} training examples; {sign_sentence(data.query_name, data.better)}."
    if total > most:
        order = order[: most - most // 2] + order[total - most // 2 :]
        caption = f"{most:,} of {caption[4:-1]}, the most harmful and the most helpful."
    ranks = data.scores.ranks(data.query)[order].tolist()
    looked_at = [data.examples.get(i) for i in order]
    labels = data.scores.labels
    own: dict[str, list[Cell]] = {
        "rank": ranks,
        "example id": order,
        "label": [_label(e, None if labels is None else labels[i]) for i, e in zip(order, looked_at, strict=True)],
        "true label": [None if example is None else example.true_label for example in looked_at],
        "prediction": [None if example is None else example.prediction for example in looked_at],
        "known corrupt": ["yes" if i in data.known_corrupt else "" for i in order],
        "text": [None if example is None else example.text[:_LONGEST_CELL] for example in looked_at],
    }
    scored = dict(_score_columns(data, order))
    names = list(dict.fromkeys(name for example in looked_at if example is not None for name in example.row))
    rows = {
        f"{name} of the row" if name in {*own, *scored} else name: _uniform([e and e.row.get(name) for e in looked_at])
        for name in names[:_MOST_COLUMNS]
    }
    columns = {**own, **scored, **rows}
    table = Table("all-examples", caption, tuple(columns), tuple(zip(*columns.values(), strict=True)))
    return _without_empty_columns(table)


def _score_columns(data: ReportData, order: Sequence[int]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the scores of the report's own query, of its others and of other methods."""
    scores, first = data.scores, data.scores.query_index(data.query)
    for q in sorted(range(len(scores.queries)), key=lambda q: q != first)[:_MOST_COLUMNS]:
        yield score_name(scores.queries[q], scores.better[q]), scores.values[order, q].tolist()
        if scores.standard_error is not None:
            yield f"standard error of {scores.queries[q]}", scores.standard_error[order, q].tolist()
    if scores.verified is not None:
        yield "verified", ["yes" if measured else "no" for measured in scores.verified[order].tolist()]
    for method, other in data.compared.items():
        q = other.queries.index(data.query_name) if data.query_name in other.queries else 0
        yield f"{score_name(other.queries[q], other.better[q])} ({method})", other.values[order, q].tolist()


def _label(example: Example | None, known: str | None) -> str | None:
    return known if known is not None or example is None else example.label


def _uniform(cells: list[Cell]) -> list[Cell]:
    """Return cells of one type, as dashboards want them; those without a value are ``None``."""
    known = [None if cell == "" else cell for cell in cells]
    if any(isinstance(cell, str) for cell in known):
        return [None if cell is None else str(cell) for cell in known]
    return known


def detection_table(data: ReportData) -> Table:
    """Return the measures of finding the known corrupt examples, a row per method."""
    rows = tuple(
        (
            method_label(data, method),
            detection.auroc,
            detection.average_precision,
            detection.hits,
            detection.corrupt,
            detection.total,
        )
        for method, detection in data.detections.items()
    )
    columns = ("method", "AUROC", "average precision", "found at the top", "corrupt", "examples")
    caption = "Found at the top: corrupt ones among as many examples as there are corrupt ones. Chance: AUROC 0.5."
    return Table("detection", caption, columns, rows)


def before_after_table(data: ReportData) -> Table:
    """Return the metrics before and after cleansing, with their tests."""
    rows: list[tuple[Cell, ...]] = []
    for change in data.before_after:
        before, after = change.means
        test = change.test
        bounds = (None,) * 3 if test is None else tuple(map(_known, (test.low, test.high, test.p_value)))
        name = None if test is None else test.test
        rows.append((change.metric, change.removed, before, after, after - before, *bounds, name, len(change.before)))
    columns = ("metric", "left out", "before", "after", "change", "change, low", "change, high", "p", "test", "runs")
    tested = any(row[5] is not None for row in rows)
    averaged = any(len(change.before) > 1 for change in data.before_after)
    caption = ("Means over runs" if averaged else "One run") + (
        "; the interval is that of the test." if tested else "."
    )
    return _without_empty_columns(Table("before-after", caption, columns, tuple(rows)))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def curve_table(data: ReportData) -> Table:
    """Return every point of the cleansing curves."""
    rows: list[tuple[Cell, ...]] = []
    for curve in data.curves:
        low, high = curve.interval()
        for column, count in enumerate(curve.counts):
            rows.append(
                (
                    method_label(data, curve.method),
                    count,
                    float(curve.mean[column]),
                    float(low[column]),
                    float(high[column]),
                    curve.runs,
                )
            )
    columns = ("method", "left out", "error", "error, low", "error, high", "runs")
    return Table("curves", "Mean over runs with its 95 % interval.", columns, tuple(rows))


def cause_table(data: ReportData) -> Table:
    """Return the training examples behind each explained prediction."""
    rows = tuple(
        (explanation.title, explanation.query, sign_sentence("it", explanation.better), example_id, score)
        for explanation in data.explanations
        for example_id, score in explanation.causes
    )
    columns = ("prediction", "query", "sign", "example id", "change of the query if left out")
    return Table("explanations", "Training examples behind single predictions.", columns, rows)


def cost_table(data: ReportData) -> Table:
    """Return time and size of each part of the work."""
    rows = tuple((cost.part, cost.seconds, cost.size_bytes) for cost in data.costs)
    return Table("costs", "Wall time and size of each part.", ("part", "seconds", "bytes"), rows)


def all_tables(data: ReportData) -> tuple[Table, ...]:
    """Return every table that has rows."""
    tables = (
        ranking_table(data, data.scores.most_harmful(data.shown, data.query), "most-harmful"),
        ranking_table(data, data.scores.most_helpful(data.shown, data.query), "most-helpful"),
        before_after_table(data),
        curve_table(data),
        detection_table(data),
        cause_table(data),
        cost_table(data),
    )
    return tuple(table for table in tables if table.rows)


def write_csv(table: Table, path: Path) -> None:
    """Write a table as CSV, UTF-8, numbers in full precision, unknown cells empty; texts are never formulas.

    A file of the same name is replaced at once.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows([csv_cell(value) for value in row] for row in (table.columns, *table.rows))
    replace_bytes(path, text.getvalue().encode("utf-8", "replace"))


def _without_empty_columns(table: Table) -> Table:
    used = [i for i in range(len(table.columns)) if any(row[i] not in (None, "") for row in table.rows)]
    columns = tuple(table.columns[i] for i in used)
    return Table(table.name, table.caption, columns, tuple(tuple(row[i] for i in used) for row in table.rows))
