"""Which predictions to explain, and the query that explains them in the same walk as the job's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightning_sgdinf.cleansing import logits_and_labels
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import Better, ExampleLoss, Margin, Query, Term, ValidationData


@dataclass(frozen=True)
class Joined:
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
        """As both."""
        return self.first.better

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """The first's, then the second's."""
        return (*self.first.names(data), *self.second.names(data))

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """The first's, then the second's, counted on."""
        yield from self.first.terms(model, data)
        count = len(self.first.names(data))
        for number, weight, term in self.second.terms(model, data):
            yield count + number, weight, term


def explained_query(better: Better, positions: Sequence[int]) -> Query:
    """Loss or margin of single validation examples, whichever has the same good direction as the job's query."""
    return ExampleLoss(positions) if better == "lower" else Margin(positions)


def wrongly_classified(model: nn.Module, loader: Iterable[Any], count: int) -> tuple[int, ...]:
    """Positions in the loader's order of wrongly classified examples, the largest loss first, at most ``count``."""
    training = model.training
    model.eval()
    losses, wrong = [], []
    with torch.no_grad():
        for batch in loader:
            logits, labels = logits_and_labels(model, batch)
            losses.append(functional.cross_entropy(logits, labels, reduction="none").cpu())
            wrong.append((logits.argmax(1) != labels).cpu())
    model.train(training)
    loss = torch.where(torch.cat(wrong), torch.cat(losses), -1.0)
    order = torch.argsort(loss, descending=True, stable=True)[:count]
    return tuple(order[loss[order] >= 0].tolist())
