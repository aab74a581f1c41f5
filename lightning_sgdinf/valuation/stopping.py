r"""When enough has been sampled.

`Agreement`, the default of what one should use: the rank correlation ``r`` of the values from two halves of the rounds,
stepped up by Spearman and Brown, :math:`2r / (1 + r)`, estimates how far the values of all rounds agree with those of
another set as large. `Settled` is the rule of the Data Shapley paper, kept beside it: the mean relative change over the
last hundred rounds. It is ill-conditioned, since some values are near 0 and are divided by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError

Values = Callable[[int, int], Tensor]
"""Returns the values ``[P, Q]`` that rounds ``start .. stop - 1`` give."""

CHECKED = 20
"""Rounds between two looks at a rule: halves of them are whole blocks of every way of sampling."""


class StoppingRule(Protocol):
    """Says when to stop."""

    def reached(self, rounds: int, values: Values) -> bool:
        """Return true if no more rounds are needed.

        Args:
            rounds: Taken so far, a multiple of ``CHECKED``.
            values: Gives the values of some of them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """Enough if another set of as many rounds would rank the players alike, for every query.

    Attributes:
        level: Rank correlation to be expected, between 0 and 1.
    """

    level: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigurationError(f"Agreement(level): expected a number between 0 and 1, got {self.level}")

    def reached(self, rounds: int, values: Values) -> bool:
        """See `StoppingRule`."""
        return bool((halves_agree(rounds, values) >= self.level).all())


@dataclass(frozen=True, slots=True)
class Settled:
    """The paper's rule: enough if the last rounds changed the values little, on average and relative to each.

    Attributes:
        change: Mean relative change that counts as little, above 0.
        rounds: How many rounds back to compare with, at least 1.
    """

    change: float = 0.05
    rounds: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.change < inf or self.rounds < 1:
            raise ConfigurationError(
                f"Settled: expected a change above 0 and at least 1 round, got {self.change} and {self.rounds}"
            )

    def reached(self, rounds: int, values: Values) -> bool:
        """See `StoppingRule`."""
        if rounds <= self.rounds:
            return False
        now, then = values(0, rounds), values(0, rounds - self.rounds)
        return bool(((now - then).abs() / now.abs().clamp_min(1e-12)).mean(0).lt(self.change).all())


def halves_agree(rounds: int, values: Values) -> Tensor:
    """Return the agreement of the values of all rounds with another set as large, ``[Q]``, by that of two halves."""
    half = rounds // 2
    correlation = rank_correlation(values(0, half), values(half, 2 * half))
    return 2 * correlation / (1 + correlation).clamp_min(1e-12)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of the columns of two tensors ``[P, Q]``, ``[Q]``; 0 where one is constant."""
    pairs = zip(a.T, b.T, strict=True)
    return torch.stack([_correlation(_ranks(x), _ranks(y)) for x, y in pairs])


def _ranks(values: Tensor) -> Tensor:
    """Return ranks, equal values sharing the mean of theirs."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    size = a.norm() * b.norm()
    return (a @ b) / size if size > 0 else torch.zeros((), dtype=torch.float64)
