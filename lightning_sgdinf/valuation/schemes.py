r"""Sampling schemes: which coalitions a round asks for, and the values that the answers of some rounds give.

Orders: players join one after another, and each is credited with what it adds, :math:`P p(s) (V(S \cup i) - V(S))`,
``s`` the number that was there before it. The mean over orders is the semivalue, without bias.

Coalitions of every size, with a control variate. A semivalue is a difference of means of values,

.. math:: \phi_i = \sum_{s=1}^{P} p(s-1)\, \mathrm{E}[V(S) \mid i \in S, |S| = s]
   - \sum_{s=0}^{P-1} p(s)\, \mathrm{E}[V(S) \mid i \notin S, |S| = s],

so one random coalition of each size serves all players at once. What varies there is mostly what a predictor knows
beforehand: :math:`h(S) = \alpha_s + \beta_s \sum_{j \in S} a_j`, with :math:`a_j` minus the influence score of ``j``.
The semivalue of ``h`` has a closed form; only :math:`V - h` is sampled. :math:`\alpha_s` and :math:`\beta_s` are least
squares on the other rounds, so the estimate stays without bias, and for Shapley's weights the values of every round add
up to :math:`V(\text{all}) - V(\emptyset)` exactly. An additive predictor is no use for orders: what it says that a
player adds is the same in every order.

Random coalitions, every one used for every player (maximum sample reuse): for Banzhaf's weights
:math:`\phi_i = \mathrm{E}[V(S) \mid i \in S] - \mathrm{E}[V(S) \mid i \notin S]`.

References:
    Ghorbani and Zou, "Data Shapley", ICML 2019 (arXiv:1904.02868).
    Castro, Gómez and Tejada, "Polynomial calculation of the Shapley value based on sampling", Computers & Operations
    Research 36, 2009.
    Wang and Jia, "Data Banzhaf", AISTATS 2023 (arXiv:2205.15466).
    Covert and Lee, "Improving KernelSHAP", AISTATS 2021 (arXiv:2012.01536).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_sgdinf.valuation.sampling import (
    BLOCKS,
    Sampling,
    draw_coalitions,
    draw_of_each_size,
    draw_order,
    prefixes,
)
from lightning_sgdinf.valuation.semivalues import Sizes

FOLDS = 5
"""Parts of the rounds; the predictor of one part is fitted on the others."""

REUSED = 20
"""Random coalitions of one round."""

Rounds = Sequence[int]


class Ends(NamedTuple):
    """The values of nobody and of everybody, float64 ``[Q]`` each."""

    empty: Tensor
    full: Tensor


class Sampled(NamedTuple):
    """Values and their standard errors, float64 ``[P, Q]`` each; NaN where too few rounds tell no error."""

    values: Tensor
    standard_error: Tensor


class Scheme(Protocol):
    """A way to sample coalitions; ``block`` rounds belong together."""

    @property
    def block(self) -> int:
        """Return how many consecutive rounds are drawn together."""
        ...

    @property
    def size(self) -> int:
        """Return ``K``, the number of coalitions of a round."""
        ...

    def coalitions(self, round_: int) -> Tensor:
        """Return the coalitions of a round, bool ``[K, P]``."""
        ...

    def estimate(self, rounds: Rounds, values: Tensor, ends: Ends) -> Sampled:
        """Return the values that some rounds give.

        Args:
            rounds: Numbers of ``T`` rounds, whole blocks.
            values: Of their coalitions, float64 ``[T, K, Q]``; NaN where a truncated round asked no more.
            ends: The values of nobody and of everybody.
        """
        ...


@dataclass(frozen=True)
class Orders:
    """Players that join one after another; see the module's text.

    Attributes:
        players: ``P``.
        sizes: Weights of the semivalue.
        seed: Of all rounds.
        sampling: How rounds belong together.
    """

    players: int
    sizes: Sizes
    seed: int
    sampling: Sampling

    @property
    def block(self) -> int:
        """See `Scheme`."""
        return BLOCKS[self.sampling]

    @property
    def size(self) -> int:
        """See `Scheme`."""
        return self.players - 1

    def coalitions(self, round_: int) -> Tensor:
        """Return the first players of the round's order: 1, 2, ..."""
        return prefixes(draw_order(self.sampling, self.seed, round_, self.players))

    def estimate(self, rounds: Rounds, values: Tensor, ends: Ends) -> Sampled:
        """See `Scheme`; players that a truncated round did not come to are credited with nothing."""
        weights = self.players * self.sizes(self.players)
        credited = torch.zeros(len(rounds), self.players, values.shape[2], dtype=torch.float64)
        for row, round_ in enumerate(rounds):
            path = torch.cat([ends.empty[None], values[row], ends.full[None]])
            added = path.diff(dim=0)
            asked = int((~path.isnan().any(1)).sum())
            if asked < len(path):
                added[asked - 2 :] = 0.0  # `full` stands after a gap
            credited[row, draw_order(self.sampling, self.seed, round_, self.players)] = weights[:, None] * added
        return mean_of_rounds(credited, self.block)


@dataclass(frozen=True)
class EverySize:
    """One random coalition of each size in a round, with a control variate; see the module's text.

    Attributes:
        players: ``P``.
        sizes: Weights of the semivalue.
        seed: Of all rounds.
        gains: What each player is predicted to add, ``[P, Q]``, or ``[P, 1]`` for all queries.
        paired: Of sizes ``s`` and ``P - s`` one coalition is the complement of the other.
    """

    players: int
    sizes: Sizes
    seed: int
    gains: Tensor
    paired: bool = True
    block = 1

    @property
    def size(self) -> int:
        """See `Scheme`."""
        return self.players - 1

    def coalitions(self, round_: int) -> Tensor:
        """Return a coalition of each size, the smallest first."""
        return draw_of_each_size(self.seed, round_, self.players, paired=self.paired)

    def estimate(self, rounds: Rounds, values: Tensor, ends: Ends) -> Sampled:
        """See `Scheme`."""
        members = torch.stack([self.coalitions(r) for r in rounds])  # [T, K, P]
        sums = torch.einsum("tkp,pq->tkq", members.double(), self.gains.double()).expand(values.shape)
        total = self.gains.double().sum(0).expand(values.shape[2])
        one = torch.ones(len(rounds), 1, values.shape[2], dtype=torch.float64)
        values = torch.cat([one * ends.empty, values, one * ends.full], 1)  # sizes 0 .. P
        sums = torch.cat([one * 0.0, sums, one * total], 1)
        parts = torch.arange(len(rounds)) % min(FOLDS, len(rounds))
        each = torch.zeros(len(rounds), self.players, values.shape[2], dtype=torch.float64)
        for part in parts.unique():
            own, others = parts == part, parts != part
            level, slope = _fit(values[others], sums[others]) if bool(others.any()) else _flat(values, sums)
            left = values[own] - level - slope * sums[own]
            each[own] = self._predicted(level, slope) + self._sampled(left, members[own])
        return mean_of_rounds(each, self.block)

    def _predicted(self, level: Tensor, slope: Tensor) -> Tensor:
        """Return the semivalue of the predictor with levels and slopes ``[P + 1, Q]`` by size, ``[P, Q]``."""
        n, weights = self.players, self.sizes(self.players)[:, None]
        gains = self.gains.double().expand(n, level.shape[1])
        others = gains.sum(0) - gains
        share = torch.arange(n, dtype=torch.float64)[:, None] / max(n - 1, 1)  # of the others, in s of them
        steps = (weights * level.diff(dim=0)).sum(0)
        return (
            steps + gains * (weights * slope[1:]).sum(0) + others * (weights * share * (slope[1:] - slope[:-1])).sum(0)
        )

    def _sampled(self, left: Tensor, members: Tensor) -> Tensor:
        """Return the semivalue of what is left ``[T, P + 1, Q]``, from each round, ``[T, P, Q]``."""
        n, weights = self.players, self.sizes(self.players)
        size = torch.arange(n + 1, dtype=torch.float64)
        with_it = torch.cat([torch.zeros(1, dtype=torch.float64), weights * n / size[1:]])
        without = torch.cat([weights * n / (n - size[:-1]), torch.zeros(1, dtype=torch.float64)])
        present = members.double()
        middle = torch.einsum("tkp,tkq->tpq", present, with_it[1:n, None] * left[:, 1:n]) - torch.einsum(
            "tkp,tkq->tpq", 1 - present, without[1:n, None] * left[:, 1:n]
        )
        return middle + (with_it[n] * left[:, n] - without[0] * left[:, 0])[:, None]


@dataclass(frozen=True)
class Reuse:
    """Random coalitions, each used for every player: maximum sample reuse, for Banzhaf values.

    Attributes:
        players: ``P``.
        seed: Of all rounds.
        paired: Half of a round's coalitions are complements of the others.
        gains: What each player is predicted to add, ``[P, Q]`` or ``[P, 1]``, as a control variate; ``None`` for none.
    """

    players: int
    seed: int
    paired: bool = False
    gains: Tensor | None = None
    block = 1
    size = REUSED

    def coalitions(self, round_: int) -> Tensor:
        """Return the coalitions of a round."""
        return draw_coalitions(self.seed, round_, self.players, REUSED, paired=self.paired)

    def estimate(self, rounds: Rounds, values: Tensor, ends: Ends) -> Sampled:
        """See `Scheme`; a player that was always in, or always out, is worth nothing known, 0."""
        del ends
        members = torch.stack([self.coalitions(r) for r in rounds])
        if self.gains is None:
            return _contrast(values.flatten(0, 1), members.flatten(0, 1))
        gains = self.gains.double().expand(self.players, values.shape[2])
        sums = torch.einsum("tkp,pq->tkq", members.double(), gains)
        parts = torch.arange(len(rounds)) % min(FOLDS, len(rounds))
        left, slopes = torch.empty_like(values), torch.zeros(len(rounds), values.shape[2], dtype=torch.float64)
        for part in parts.unique():
            own, others = parts == part, parts != part
            x, y = sums[others].flatten(0, 1), values[others].flatten(0, 1)
            slope = _slope(x - x.mean(0), y - y.mean(0)) if len(x) > 1 else torch.ones(values.shape[2]).double()
            # Around its expectation, so that parts with other slopes have the same level.
            left[own], slopes[own] = values[own] - slope * (sums[own] - gains.sum(0) / 2), slope
        sampled = _contrast(left.flatten(0, 1), members.flatten(0, 1))
        return Sampled(sampled.values + gains * slopes.mean(0), sampled.standard_error)


def mean_of_rounds(each: Tensor, block: int = 1) -> Sampled:
    """Return means over rounds ``[T, P, Q]``, with standard errors from the means of blocks."""
    blocks = each.unflatten(0, (-1, block)).mean(1)
    error = blocks.std(0) / len(blocks) ** 0.5 if len(blocks) > 1 else torch.full_like(blocks[0], torch.nan)
    return Sampled(blocks.mean(0), error)


def _contrast(values: Tensor, members: Tensor) -> Sampled:
    """Return differences of means ``[P, Q]`` of values ``[M, Q]`` with and without each player of ``[M, P]``."""
    means, errors = [], []
    for present in (members.double(), (~members).double()):
        count = present.sum(0)[:, None]
        mean = present.T @ values / count.clamp_min(1)
        square = present.T @ values.square() / count.clamp_min(1)
        means.append(torch.where(count > 0, mean, 0.0))
        errors.append((square - mean.square()).clamp_min(0) / (count - 1).clamp_min(1))
    known = ((members.any(0)) & (~members).any(0))[:, None]
    return Sampled(torch.where(known, means[0] - means[1], 0.0), (errors[0] + errors[1]).sqrt())


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Return least-squares slopes ``[Q]`` of centred columns; 0 where the predictor does not vary."""
    square = x.square().sum(0)
    return torch.where(square > 0, (x * y).sum(0) / square.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


WINDOW = 60
"""Coalitions of neighbouring sizes that a slope is fitted on, at least."""


def _fit(values: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Fit ``value = level + slope * sum`` size by size; a slope on neighbouring sizes, too, while rounds are few.

    Args:
        values: ``[T, P + 1, Q]``.
        sums: Of the predictor, ``[T, P + 1, Q]``.

    Returns:
        Levels and slopes, ``[P + 1, Q]`` each.
    """
    middle, centre = values.mean(0), sums.mean(0)
    products = ((values - middle) * (sums - centre)).sum(0)
    squares = (sums - centre).square().sum(0)
    reach = -(-WINDOW // (2 * len(values)))
    products, squares = (_window_sums(v, reach) for v in (products, squares))
    tiny = torch.finfo(torch.float64).tiny
    slope = torch.where(squares > 0, products / squares.clamp_min(tiny), 0.0)
    return middle - slope * centre, slope


def _window_sums(values: Tensor, reach: int) -> Tensor:
    """Return sums over ``reach`` neighbours on either side along the first dimension."""
    total = torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)])
    size = torch.arange(len(values))
    return total[(size + reach + 1).clamp_max(len(values))] - total[(size - reach).clamp_min(0)]


def _flat(values: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predictor of a single round, whose own values must not be used: a straight line between the ends."""
    share = torch.linspace(0, 1, values.shape[1], dtype=torch.float64)[:, None]
    first, last = values[0, 0], values[0, -1]
    return first + share * (last - first), torch.zeros_like(sums[0])
