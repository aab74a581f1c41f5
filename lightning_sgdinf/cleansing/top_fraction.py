"""The most harmful part of the training set is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_sgdinf.cleansing.base import CleansingContext, most_harmful_ids
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


@final
@dataclass(frozen=True)
class TopFraction:
    """Drop the most harmful ``fraction`` of the training set: ``floor(fraction * N + 1/2)`` examples.

    In a configuration file::

        _target_: lightning_sgdinf.cleansing.TopFraction
        fraction: 0.01

    Args:
        fraction: In ``[0, 1)``.

    Raises:
        ConfigurationError: ``fraction`` is outside its range.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < 1.0:
            raise ConfigurationError(f"fraction: expected a share of the training set in [0, 1), got {self.fraction}.")

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose what to drop; see `TopFraction`.

        Raises:
            ConfigurationError: Nothing is left of a class, and the context refuses that.
        """
        count = count_of(self.fraction, len(scores))
        drop = most_harmful_ids(scores, count, query)
        reason = f"the {count} most harmful examples, {100 * self.fraction:.3f} % of the training set"
        return context.checked(Selection(drop=drop, reason=reason))


def count_of(fraction: float, total: int) -> int:
    """Return the whole number nearest to ``fraction * total``, halves upwards, leaving at least one of ``total``."""
    return max(0, min(int(fraction * total + 0.5), total - 1))
