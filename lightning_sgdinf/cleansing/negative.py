"""Everything whose score says that the query would be better without it is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_sgdinf.cleansing.base import CleansingContext, most_harmful_ids
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


@final
@dataclass(frozen=True)
class Negative:
    """Drop every example whose harm exceeds a threshold.

    For a loss query the harm is minus the score, so these are the scores below ``-threshold``. With threshold 0 that is
    often near half of the training set: first-order scores add up only for small selections, and such a large one
    should be checked on held-out data. In a configuration file::

        _target_: lightning_sgdinf.cleansing.Negative
        threshold: 0.0

    Args:
        threshold: In units of the query, 0 or more.

    Raises:
        ConfigurationError: ``threshold`` is negative or NaN.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise ConfigurationError(
                f"threshold: expected 0 or more, got {self.threshold}; below 0 also helpful examples would be dropped."
            )

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose what to drop; see `Negative`.

        Raises:
            ConfigurationError: Every example is beyond the threshold, so that nothing would be left, or nothing of a
                class, and the context refuses that.
        """
        count = context.allowed(int((scores.harm(query) > self.threshold).sum()), len(scores))
        drop = most_harmful_ids(scores, count, query)
        reason = f"{count} examples whose harm to the query exceeds {self.threshold:g}"
        return context.checked(Selection(drop=drop, reason=reason))
