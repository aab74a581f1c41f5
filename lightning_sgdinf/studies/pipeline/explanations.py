"""The wrong predictions to explain, and the query that explains them in the same walk as the job's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_sgdinf.cleansing import evaluate_classifier
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import Better, ExampleLoss, Margin, Query, Term, ValidationData


@dataclass(frozen=True)
class JoinedQuery:
    """Two queries as one, so that one walk answers both.

    Args:
        first: Comes first among the scalars.
        second: Of the same good direction.

    Raises:
        ConfigurationError: One is better when lower, the other when higher.
    """

    first: Query
    second: Query

    def __post_init__(self) -> None:
        if self.first.better != self.second.better:
            raise ConfigurationError(
                f"joined queries: expected one good direction, got {self.first.better!r} and {self.second.better!r}"
            )

    @property
    def better(self) -> Better:
        """Return the good direction of both."""
        return self.first.better

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the first's names, then the second's."""
        return (*self.first.names(data), *self.second.names(data))

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield the first's terms, then the second's, counted on."""
        yield from self.first.terms(model, data)
        count = len(self.first.names(data))
        for number, weight, term in self.second.terms(model, data):
            yield count + number, weight, term


def explained_query(better: Better, positions: Sequence[int]) -> Query:
    """Return loss or margin of single validation examples, whichever has the good direction of the job's query."""
    return ExampleLoss(positions) if better == "lower" else Margin(positions)


def wrongly_classified(model: nn.Module, loader: Iterable[Any], count: int) -> tuple[int, ...]:
    """Return positions in the loader's order of wrongly classified examples, the largest loss first.

    Args:
        model: A classifier; its modes are afterwards as before.
        loader: Yields ``(x, y)`` batches in a fixed order.
        count: Positions to return at most.
    """
    evaluation = evaluate_classifier(model, loader)
    loss = torch.where(evaluation.wrong, evaluation.losses, -1.0)
    order = torch.argsort(loss, descending=True, stable=True)[:count]
    return tuple(order[loss[order] >= 0].tolist())
