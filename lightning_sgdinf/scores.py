"""Scores: the change of each query had a training example been left out.

The sign, once and for all: ``values[j, q]`` estimates the change of query ``q`` had example ``j`` been left out of the
same run. For a query that is better when lower (a loss), negative is harmful: leaving the example out lowers the loss.
For one that is better when higher (a margin, an accuracy), positive is harmful. `Scores.harm`, `Scores.order`,
`Scores.most_harmful` and `Scores.most_helpful` know which is which, so that nobody else has to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.arguments import whole_number
from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.errors import (
    ConfigurationError,
    LogCorruptError,
    LogExistsError,
    SgdInfluenceError,
)
from lightning_sgdinf.extras import require
from lightning_sgdinf.log import Json, read_arrays, write_arrays
from lightning_sgdinf.notebook import html_of
from lightning_sgdinf.plain_text import csv_cell, encodable, printable
from lightning_sgdinf.ranking import Better, Ranking
from lightning_sgdinf.score_columns import check_directions, check_epochs, check_matrix, check_names

if TYPE_CHECKING:
    import pandas

KIND = "sgdinf-scores/1"
"""Name of the format of a file of scores."""


class _Tables:
    """Writes what has a table into files; a part of `Scores`."""

    def to_frame(self) -> pandas.DataFrame:
        """Return the table."""
        raise NotImplementedError

    def to_csv(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write `to_frame` as CSV; refuses a path that is taken unless ``overwrite``."""
        frame = self.to_frame()
        refuse_taken(path, overwrite=overwrite)
        for column in frame.select_dtypes(exclude=["number", "bool"]):  # texts are never formulas
            frame[column] = frame[column].map(csv_cell)
        frame.columns = [csv_cell(name) for name in frame.columns]
        frame.to_csv(path, index=False, errors="replace")

    def to_parquet(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write `to_frame` as Parquet; refuses a path that is taken unless ``overwrite``."""
        require("pyarrow", extra="report")
        frame = self.to_frame()
        refuse_taken(path, overwrite=overwrite)
        frame.to_parquet(path, index=False, engine="pyarrow")


@dataclass(frozen=True, eq=False, repr=False)
class Scores(_Tables):
    """The estimated change of every query had each training example been left out.

    ``N`` is the length of the training set (an example's id is its index there), ``Q`` the number of queries, ``E`` the
    number of epochs.

    Args:
        values: ``[N, Q]``, units of the query; kept as float64 on the CPU.
        queries: ``Q`` different names.
        labels: ``N`` labels, for display.
        per_epoch: ``[E, N, Q]``: each epoch's contribution; sums over epochs to ``values``.
        certificate: The checks of the values.
        provenance: Their origin: digests of log, query and estimator, versions, seconds, bytes.
        better: The good direction of each query, ``"lower"`` for all if left empty; ``"order"`` for what is no query
            but ranks the examples, the most harmful lowest.
        verified: Whose values were measured by training again without the example, bool ``[N]``; ``None`` if nobody's
            were.
        standard_error: Of sampling, ``[N, Q]``, units of the query; ``None`` where nothing was sampled.

    Raises:
        ConfigurationError: Shapes, names or directions that do not fit together.
        NonFiniteError: A value is NaN or infinite; names the example.
    """

    values: Tensor
    queries: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    per_epoch: Tensor | None = None
    certificate: Certificate | None = None
    provenance: Mapping[str, Json] = field(default_factory=dict)
    better: tuple[Better, ...] = ()
    verified: Tensor | None = None
    standard_error: Tensor | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - how a frozen value is normalised
        put("queries", check_names(self.queries))
        put("better", check_directions(self.better, self.queries))
        put("values", check_matrix(self.values, self.queries))
        put("provenance", dict(self.provenance))
        if self.labels is not None:
            put("labels", tuple(encodable(str(label)) for label in self.labels))
            if len(self.labels) != len(self):
                raise ConfigurationError(f"labels: expected one per example ({len(self)}), got {len(self.labels)}")
        if self.per_epoch is not None:
            put("per_epoch", check_epochs(self.per_epoch, self.values, self.queries))
        if self.standard_error is not None:
            put("standard_error", check_matrix(self.standard_error, self.queries, "standard_error", "standard error"))
            if len(self.standard_error) != len(self):
                raise ConfigurationError(
                    f"standard_error: expected one row per example ({len(self)}), got {len(self.standard_error)}"
                )
        if self.verified is not None:
            put("verified", self.verified.detach().to("cpu", torch.bool).contiguous())
            if self.verified.shape != (len(self),):
                raise ConfigurationError(
                    f"verified: expected shape [{len(self)}], one per example, got {list(self.verified.shape)}"
                )

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        checked = "none" if self.certificate is None else self.certificate.level
        return f"Scores({len(self)} training examples, queries={list(self.queries)}, certificate={checked})"

    def _repr_html_(self) -> str:
        return html_of(self)

    def query_index(self, query: int | str) -> int:
        """Return the column of a query.

        Args:
            query: Its name, or its position in ``[-Q, Q)``.

        Raises:
            ConfigurationError: There is no such query; lists those there are.
        """
        count = len(self.queries)
        if isinstance(query, str) and query in self.queries:
            return self.queries.index(query)
        if isinstance(query, (int, np.integer)) and not isinstance(query, bool) and -count <= query < count:
            return int(query) % count
        known = ", ".join(f"{index}: {name!r}" for index, name in enumerate(self.queries))
        raise ConfigurationError(f"query: expected one of {{{known}}}, got {query!r}")

    def harm(self, query: int | str = 0) -> Tensor:
        """Return the improvement of the query without each example, float64 ``[N]``: positive is harmful, always."""
        column = self.query_index(query)
        return self.values[:, column] * (1.0 if self.better[column] == "higher" else -1.0)

    def order(self, query: int | str = 0) -> Tensor:
        """Return all example ids, int64 ``[N]``, the most harmful first; equal scores in order of id."""
        return torch.argsort(self.harm(query), descending=True, stable=True)

    def ranks(self, query: int | str = 0) -> Tensor:
        """Return each example's place, int64 ``[N]``: 1 plus the number of examples that are more harmful."""
        harm = self.harm(query)
        return 1 + torch.searchsorted(torch.sort(-harm).values, -harm, side="left")

    def most_harmful(self, k: int, query: int | str = 0) -> Ranking:
        """Rank the examples without which the query would be best.

        Args:
            k: Number of examples, at least 1; all if there are fewer.
            query: Name or position of the query.

        Raises:
            ConfigurationError: ``k`` is below 1, or there is no such query.
        """
        return _ranked(self, self.order(query)[: whole_number(k, "k", least=1)], query)

    def most_helpful(self, k: int, query: int | str = 0) -> Ranking:
        """Rank the examples without which the query would be worst; arguments as for `most_harmful`."""
        return _ranked(self, torch.argsort(self.harm(query), stable=True)[: whole_number(k, "k", least=1)], query)

    def summary(self, query: int | str = 0) -> tuple[str, ...]:
        """Return the result in a few sentences, each number with what is known of it.

        Args:
            query: Name or position of the query.
        """
        column = self.query_index(query)
        name, harm = self.queries[column], self.harm(query)
        ends = (("harmful", self.most_harmful(1, query)), ("helpful", self.most_helpful(1, query)))
        most = "; ".join(f"most {end} is {row.example_id} ({row.score:+.3g})" for end, (row,) in ends)
        if self.better[column] == "order":
            return (f"{len(self)} training examples, ranked by {name}: {most}.",)
        first = (
            f"{len(self)} training examples, by the predicted change of {name} had each been left out: {most}; "
            f"{100 * float((harm > 0).double().mean()):.0f} % are predicted to harm it."
        )
        return (first, *reach(self, query))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write everything to one HDF5 file, which `load` reads back as an equal value.

        Raises:
            LogExistsError: The path is taken and ``overwrite`` was not asked for.
        """
        refuse_taken(path, overwrite=overwrite)
        arrays = {"values": self.values.numpy()}
        if self.per_epoch is not None:
            arrays["per_epoch"] = self.per_epoch.numpy()
        if self.verified is not None:
            arrays["verified"] = self.verified.numpy()
        if self.standard_error is not None:
            arrays["standard_error"] = self.standard_error.numpy()
        if self.labels is not None:  # bytes of JSON: an attribute is too small for the labels of a large training set
            arrays["labels"] = np.frombuffer(json.dumps(self.labels).encode(), np.uint8)
        attributes: dict[str, Json] = {
            "queries": list(self.queries),
            "better": list(self.better),
            "certificate": None if self.certificate is None else self.certificate.to_json(),
            "provenance": dict(self.provenance),
        }
        write_arrays(path, arrays, attributes, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            LogNotFoundError: There is no such file.
            LogVersionError: It is something else, or of another version.
            LogCorruptError: It is damaged, or no scores are in it.
        """
        arrays, attributes = read_arrays(path, kind=KIND)
        stored: dict[str, Any] = dict(attributes)
        try:
            certificate = stored["certificate"]
            return cls(
                values=torch.from_numpy(np.array(arrays["values"])),
                queries=tuple(stored["queries"]),
                labels=tuple(json.loads(arrays["labels"].tobytes())) if "labels" in arrays else None,
                per_epoch=_stored(arrays, "per_epoch"),
                certificate=None if certificate is None else Certificate.from_json(certificate),
                provenance=stored["provenance"],
                better=tuple(stored["better"]),
                verified=_stored(arrays, "verified"),
                standard_error=_stored(arrays, "standard_error"),
            )
        except (
            SgdInfluenceError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError,
            ArithmeticError,
        ) as error:  # fmt: skip
            raise LogCorruptError(
                f"{path}: these are no scores ({type(error).__name__}: {printable(str(error))}); compute them again"
            ) from error

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas table: ``example_id``, ``label`` and ``verified`` if known, and per query score and rank.

        The columns of a query are named for what they hold: ``change_of_<query>_if_left_out`` and ``harm_rank_<query>``
        (1 for the most harmful example), and ``standard_error_of_<query>`` where values were sampled; values that only
        rank by their own name.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", extra="report")
        columns: dict[str, Any] = {"example_id": np.arange(len(self))}
        if self.labels is not None:
            columns["label"] = list(map(encodable, self.labels))
        if self.verified is not None:
            columns["verified"] = self.verified.numpy()
        for index, name in enumerate(map(encodable, self.queries)):
            ranking = self.better[index] == "order"
            columns[name if ranking else f"change_of_{name}_if_left_out"] = self.values[:, index].numpy()
            if self.standard_error is not None:
                columns[f"standard_error_of_{name}"] = self.standard_error[:, index].numpy()
            columns[f"harm_rank_{name}"] = self.ranks(index).numpy()
        return cast("pandas.DataFrame", pandas.DataFrame(columns))

    def report(self, path: str | Path, *, title: str = "Which training examples helped", **details: Any) -> Path:
        """Write the report: pictures, tables and checks.

        Args:
            path: A file that ends in ``.html`` for the page alone, which needs no other file; otherwise a folder for
                the page, its pictures and its tables. What an earlier report left there is replaced.
            title: Head of the page.
            **details: Further fields of `lightning_sgdinf.report.ReportData`, e.g. ``examples`` to show.

        Returns:
            Path of the page.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        report = require("lightning_sgdinf.report", extra="report")
        data = report.ReportData(title=title, scores=self, **details)
        write = report.write_page if Path(path).suffix == ".html" else report.write_report
        return cast(Path, write(data, path))

    def log_to(
        self,
        logger: Any,
        *,
        title: str = "Which training examples helped",
        log: str | Path | None = None,
        **details: Any,
    ) -> None:
        """Log the report to a Lightning logger: see `lightning_sgdinf.report.log_report`.

        Args:
            logger: ``trainer.logger`` or ``trainer.loggers``.
            title: Head of the page.
            log: Path of the record of the run, for loggers that keep artifacts.
            **details: Further fields of `lightning_sgdinf.report.ReportData`, e.g. ``examples`` to show.

        Raises:
            MissingExtraError: matplotlib, or what the logger needs, is not installed.
        """
        report = require("lightning_sgdinf.report", extra="report")
        report.log_report(report.ReportData(title=title, scores=self, **details), logger, log=log)


def reach(scores: Scores, query: int | str = 0) -> tuple[str, ...]:
    """Return the sentences that belong beside every number: what is known of true removals, and the warnings.

    Args:
        scores: Scores.
        query: Name or position of the query that the number is about.
    """
    column = scores.query_index(query)
    if scores.better[column] == "order" or scores.certificate is None:
        return ()
    if scores.verified is not None and bool(scores.verified.all()):
        return ("Every score was measured by really leaving the example out.",)
    return scores.certificate.reach(scores.queries[column])


def _ranked(scores: Scores, ids: Tensor, query: int | str) -> Ranking:
    column = scores.query_index(query)
    example_ids = tuple(ids.tolist())
    return Ranking(
        example_ids=example_ids,
        scores=tuple(scores.values[ids, column].tolist()),
        ranks=tuple(scores.ranks(query)[ids].tolist()),
        labels=None if scores.labels is None else tuple(scores.labels[i] for i in example_ids),
        query=scores.queries[column],
        better=scores.better[column],
        total=len(scores),
        verified=None if scores.verified is None else tuple(scores.verified[ids].tolist()),
        reach=reach(scores, query),
        standard_errors=None if scores.standard_error is None else tuple(scores.standard_error[ids, column].tolist()),
    )


def _stored(arrays: Mapping[str, np.ndarray], name: str) -> Tensor | None:
    return torch.from_numpy(np.array(arrays[name])) if name in arrays else None


def refuse_taken(path: str | Path, *, overwrite: bool) -> None:
    """Refuse to write to a path that is taken.

    Raises:
        LogExistsError: The path is taken and ``overwrite`` was not asked for.
    """
    if not overwrite and Path(path).exists():
        raise LogExistsError(f"{path} exists; give another path, or overwrite=True to replace it")
