"""The part of the page in which all examples can be sorted, searched, looked at and compared: what it is made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lightning_sgdinf.ranking import Better
from lightning_sgdinf.report import payloads
from lightning_sgdinf.report.embedded_data import EmbeddedData, Reference, characters
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.fragments import resource, shortened
from lightning_sgdinf.report.images import data_address, pixels, png
from lightning_sgdinf.report.model import ReportData, collect_contributions, method_label
from lightning_sgdinf.scores import Scores

SINGLE = 4_000_000
"""Characters of a page that scores of single held-out examples may take."""

_HELD_OUT_SIDE = 64
_HELD_OUT_WORDS = 160
_INDEX_MARGIN = 20_000  # characters of the index that name the sheets
_SCRIPTS = ("embedded_data", "numbers", "examples", "choosing", "building", "list", "detail", "compare", "explorer")


class Column(NamedTuple):
    """One ranking of all examples.

    Attributes:
        group: ``"query"`` of the report, ``"method"`` beside it, or ``"single"`` for one held-out example.
        method: What made it.
        query: What its scores are changes of.
        better: The good direction of that.
        values: The scores, float64 ``[N]``.
        ranks: ``[N]``, or ``None`` where the page computes them when they are needed.
        about: The held-out example.
        errors: Standard errors of the scores' sampling, float64 ``[N]``; ``None`` where nothing was sampled.
    """

    group: str
    method: str
    query: str
    better: Better
    values: np.ndarray
    ranks: np.ndarray | None = None
    about: Example | None = None
    errors: np.ndarray | None = None


@dataclass
class _Descriptions:
    """Labels, words and pictures of the training examples, collected in one pass over them."""

    labels: list[str] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    pictured: set[int] = field(default_factory=set)
    texts: dict[int, str] = field(default_factory=dict)
    rows: dict[int, Any] = field(default_factory=dict)
    htmls: dict[int, str] = field(default_factory=dict)


def script() -> str:
    """Return the script that runs in the page."""
    return '"use strict";\n(() => {\n' + "\n".join(resource(f"browser/{name}.js") for name in _SCRIPTS) + "})();\n"


def content(data: ReportData, *, room: int) -> tuple[str, tuple[str, ...]]:
    """Return the part of the page that holds all examples.

    Args:
        data: What the page shows.
        room: Characters that there are for it.

    Returns:
        The elements that hold it, and notes on what there was no room for.
    """
    embedded, notes, described = EmbeddedData(), [], _described(data)
    order = data.scores.order(data.query).tolist()
    contributions, verified = collect_contributions(data), data.scores.verified
    index: dict[str, Any] = {
        "count": len(order),
        "columns": [_entry(embedded, column) for column in _fitting(data, notes)],
        "labels": payloads.names(embedded, described.labels) if any(described.labels) else None,
        "predictions": payloads.names(embedded, described.predictions) if any(described.predictions) else None,
        "truths": payloads.names(embedded, described.truths) if any(described.truths) else None,
        "corrupt": _flags(embedded, data.known_corrupt, len(order)),
        "verified": None if verified is None else embedded.array(verified.numpy().astype(np.uint8)),
        "epochs": None if contributions is None else payloads.epochs(embedded, contributions, order, notes),
        "texts": payloads.texts(embedded, described.texts, order, notes),
        "htmls": payloads.htmls(embedded, described.htmls, order, notes),
        "table": payloads.table(embedded, described.rows, order, notes),
    }
    pictured = [i for i in order if i in described.pictured]
    left = room - len(embedded) - _INDEX_MARGIN - len(pictured)
    index["sheets"] = payloads.sheets(embedded, lambda i: pixels(data.examples[i]), pictured, left, notes)
    return embedded.html(index), tuple(notes)


def _described(data: ReportData) -> _Descriptions:
    described, labels = _Descriptions(), data.scores.labels
    for i in range(len(data.scores)):
        example = data.examples.get(i)
        known = "" if example is None else example.label
        described.labels.append(known if labels is None else labels[i])
        described.truths.append("" if example is None or example.true_label is None else example.true_label)
        described.predictions.append("" if example is None else example.prediction)
        if example is None:
            continue
        if example.image is not None:
            described.pictured.add(i)
        if example.text:
            described.texts[i] = example.text
        if example.row:
            described.rows[i] = example.row
        if example.html is not None:
            described.htmls[i] = example.html.html
    return described


def _fitting(data: ReportData, notes: list[str]) -> list[Column]:
    """Return the rankings that there is room for, the report's own first."""
    columns = [*_rankings(data), *_singles(data)]
    single = sum(column.group == "single" for column in columns)
    room = max(1, SINGLE // characters(4 * len(data.scores)))
    if single > room:
        notes.append(f"Of {single:,} held-out examples, the first {room:,} are here.")
    return columns[: len(columns) - max(0, single - room)]


def _rankings(data: ReportData) -> Iterator[Column]:
    own = data.scores.query_index(data.query)
    for q in sorted(range(len(data.scores.queries)), key=lambda q: q != own):
        if q == own or data.scores.queries[q] not in data.held_out:
            yield _column("query", data.scores, q, data.method_name)
    for method, other in data.compared.items():
        q = other.queries.index(data.query_name) if data.query_name in other.queries else 0
        yield _column("method", other, q, method_label(data, method))


def _singles(data: ReportData) -> Iterator[Column]:
    own = data.scores.query_index(data.query)
    for q, name in enumerate(data.scores.queries):
        if q != own and name in data.held_out:
            yield _column("single", data.scores, q, data.method_name)._replace(ranks=None, about=data.held_out[name])
    for q, name in enumerate(() if data.single is None else data.single.queries):
        assert data.single is not None
        yield _column("single", data.single, q, data.method_name)._replace(ranks=None, about=data.held_out.get(name))


def _column(group: str, scores: Scores, q: int, method: str) -> Column:
    ranks = scores.ranks(q).numpy().astype(np.uint32)
    errors = None if scores.standard_error is None else scores.standard_error[:, q].numpy()
    values = scores.values[:, q].numpy()
    return Column(group, method, scores.queries[q], scores.better[q], values, ranks, errors=errors)


def _entry(embedded: EmbeddedData, column: Column) -> dict[str, Any]:
    scale = float(np.abs(column.values).max()) or 1.0  # keeps what is very small or very large within four-byte numbers
    return {
        "group": column.group,
        "method": column.method,
        "query": column.query,
        "better": column.better,
        "scale": scale,
        "values": embedded.array((column.values / scale).astype(np.float32)),
        "ranks": None if column.ranks is None else embedded.array(column.ranks),
        "errors": None if column.errors is None else embedded.array((column.errors / scale).astype(np.float32)),
        "about": None if column.about is None else _held_out(column.about),
    }


def _held_out(example: Example) -> dict[str, str]:
    """Return a held-out example in few words, with its picture."""
    words = example.text or ", ".join(f"{name} {value}" for name, value in example.row.items())
    line = shortened(" ".join(words.split()), _HELD_OUT_WORDS)
    about = {"label": example.label, "prediction": example.prediction, "words": line}
    if example.image is not None:
        about["image"] = data_address(png(example, largest=_HELD_OUT_SIDE), "image/png")
    return about


def _flags(embedded: EmbeddedData, ids: Iterable[int], count: int) -> Reference | None:
    flags = np.zeros(count, np.uint8)
    flags[list(ids)] = 1
    return embedded.array(flags) if flags.any() else None
