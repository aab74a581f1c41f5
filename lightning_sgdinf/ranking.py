"""A ranking: the training examples at one end of the order, as a table that says what its signs mean."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from lightning_sgdinf.plain_text import printable

Better: TypeAlias = Literal["lower", "higher", "order"]
"""The good direction of a query; ``"order"``: it is no query, but values that only rank, the most harmful
lowest."""


def score_name(query: str, better: Better) -> str:
    """Return the name of a score, for the head of a column.

    Args:
        query: Name of the query that it is a change of, or, of values that only rank, their name.
        better: The good direction.
    """
    return query if better == "order" else f"change of {query} if left out"


def sign_sentence(query: str, better: Better, end: Literal["harmful", "helpful"] = "harmful") -> str:
    """Describe the sign of a score in words, for the head of a table or the label of an axis.

    Args:
        query: Name of the query that the score is a change of.
        better: Its good direction.
        end: The sign to explain.
    """
    if better == "order":
        return f"{'lowest' if end == 'harmful' else 'highest'} = most {end}: a ranking, not a predicted change"
    falls = (better == "lower") == (end == "harmful")
    sign, moves = ("negative", "lower") if falls else ("positive", "raise")
    return f"{sign} = {end}: leaving it out is predicted to {moves} {query}"


class RankedExample(NamedTuple):
    """One line of a `Ranking`."""

    example_id: int
    score: float
    rank: int
    label: str | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Ranking:
    """The training examples at one end of the order, the most extreme first; prints as a table.

    Attributes:
        example_ids: Their ids in the training set.
        scores: The estimated change of the query had the example been left out, in units of the query; of a baseline,
            its values.
        ranks: Place among all ``total`` examples, 1 for the most harmful; equal scores share the better place.
        labels: Their labels, or ``None``.
        query: Name of the query.
        better: Its good direction.
        total: Number of examples that were ranked.
        verified: Whose scores were measured by training again without the example; ``None`` if nobody's were.
        reach: Sentences that belong beside the scores: what is known of true removals, and warnings.
        standard_errors: Of the sampling of each score, in units of the query; ``None`` where nothing was sampled.
    """

    example_ids: tuple[int, ...]
    scores: tuple[float, ...]
    ranks: tuple[int, ...]
    labels: tuple[str, ...] | None
    query: str
    better: Better
    total: int
    verified: tuple[bool, ...] | None = None
    reach: tuple[str, ...] = ()
    standard_errors: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    def __iter__(self) -> Iterator[RankedExample]:
        labels = self.labels if self.labels is not None else (None,) * len(self)
        return map(RankedExample, self.example_ids, self.scores, self.ranks, labels)

    @property
    def header(self) -> str:
        """Describe the scores and their harmful sign."""
        change = f"change of {self.query} had the example been left out"
        score = self.query if self.better == "order" else change
        sign = sign_sentence(self.query, self.better)
        return f"{len(self)} of {self.total} training examples; score = {score} ({sign})"

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Return the table as text: the names of the columns, then one row per example."""
        names = ["rank", "id", "score"]
        names += ["error"] * (self.standard_errors is not None)
        names += ["label"] * (self.labels is not None) + ["verified"] * (self.verified is not None)
        table = [tuple(names)]
        errors = self.standard_errors or (0.0,) * len(self)
        for row, error, measured in zip(self, errors, self.verified or (False,) * len(self), strict=True):
            cells = [str(row.rank), str(row.example_id), f"{row.score:+.4g}"]
            cells += [f"± {error:.2g}"] * (self.standard_errors is not None)
            cells += [printable(str(row.label)).replace("\n", " ")] * (self.labels is not None)
            cells += ["yes" if measured else "no"] * (self.verified is not None)
            table.append(tuple(cells))
        return tuple(table)

    def __repr__(self) -> str:
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return printable("\n".join((self.header, *lines, *self.reach)))

    def _repr_html_(self, *, reach: bool = True) -> str:
        head, *body = ([html.escape(cell) for cell in row] for row in self.rows())
        lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
        columns = "".join(f"<th>{cell}</th>" for cell in head)
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.reach if reach)
        return f"<p>{html.escape(self.header)}</p><table><tr>{columns}</tr>{''.join(lines)}</table>{said}"
