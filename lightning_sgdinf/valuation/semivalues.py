r"""Semivalues: averages of what a player adds, told apart by the sizes of the coalitions it is added to.

.. math:: \phi_i = \sum_{s=0}^{P-1} p(s) \; \mathrm{mean}_{|S| = s,\, i \notin S} \big(V(S \cup i) - V(S)\big),
   \qquad \sum_s p(s) = 1.

Shapley's :math:`p(s) = 1/P` treats all sizes alike, and is the only one whose values add up to :math:`V(\text{all}) -
V(\emptyset)`; Banzhaf's :math:`\binom{P-1}{s} 2^{1-P}` treats all coalitions alike; Beta Shapley's leans towards small
or large ones; leaving one out looks at the largest alone.

References:
    Dubey, Neyman and Weber, "Value theory without efficiency", Mathematics of Operations Research 6, 1981.
    Kwon and Zou, "Beta Shapley", AISTATS 2022 (arXiv:2110.14049).
    Wang and Jia, "Data Banzhaf", AISTATS 2023 (arXiv:2205.15466).
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, lgamma

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.valuation.utility import Utility, ask

Sizes = Callable[[int], Tensor]
"""Is given ``P``; returns the weights ``p(0) .. p(P - 1)`` of a semivalue, float64 ``[P]``, which sum to 1."""

EXACT_PLAYERS = 12
"""Most players whose coalitions, 4,096 of twelve, are all asked."""


def shapley_sizes(players: int) -> Tensor:
    """Return Shapley's weights: the same for every size."""
    return torch.full((players,), 1 / players, dtype=torch.float64)


def banzhaf_sizes(players: int) -> Tensor:
    """Return Banzhaf's weights: binomial."""
    n = players - 1
    return torch.tensor([exp(_log_choose(n, s) - n * _LOG_2) for s in range(players)], dtype=torch.float64)


def beta_sizes(alpha: float, beta: float) -> Sizes:
    r"""Return the weights of Beta Shapley.

    .. math:: p(s) = \binom{P-1}{s} B(s + \beta, P - 1 - s + \alpha) / B(\alpha, \beta)

    ``alpha = beta = 1`` is Shapley's; a larger ``alpha`` leans towards small coalitions, a larger ``beta`` to large
    ones.
    """

    def sizes(players: int) -> Tensor:
        n = players - 1
        logs = [_log_choose(n, s) + _log_beta(s + beta, n - s + alpha) - _log_beta(alpha, beta) for s in range(players)]
        weights = torch.tensor(logs, dtype=torch.float64).exp()
        return weights / weights.sum()  # which is 1 but for rounding

    return sizes


def leave_one_out_sizes(players: int) -> Tensor:
    """Return the weights of leaving one out: all of it on coalitions of all others."""
    weights = torch.zeros(players, dtype=torch.float64)
    weights[-1] = 1.0
    return weights


def all_coalitions(players: int) -> Tensor:
    """Return every coalition, bool ``[2**P, P]``: player ``i`` is in number ``c`` if bit ``i`` of ``c`` is set.

    Raises:
        ConfigurationError: There are too many players for that.
    """
    if players > EXACT_PLAYERS:
        raise ConfigurationError(
            f"exact values need all coalitions, of at most {EXACT_PLAYERS} players; there are {players}. Sample "
            "(permutations=), or make larger groups of examples the players (groups=)"
        )
    numbers = torch.arange(2**players)
    return (numbers[:, None] >> torch.arange(players)) & 1 > 0


def exact_semivalue(values: Tensor, players: int, sizes: Sizes) -> Tensor:
    """Return a semivalue from the values of all coalitions.

    Args:
        values: Of `all_coalitions`, ``[2**P, Q]``.
        players: ``P``.
        sizes: Weights of the semivalue.

    Returns:
        Float64 ``[P, Q]``.
    """
    coalitions = all_coalitions(players)
    size = coalitions.sum(1)
    counts = torch.tensor([exp(_log_choose(players - 1, s)) for s in range(players)], dtype=torch.float64).round()
    each = sizes(players) / counts  # the weight of one coalition of a size
    phi = torch.zeros(players, values.shape[1], dtype=torch.float64)
    for player in range(players):
        without = (~coalitions[:, player]).nonzero()[:, 0]
        added = values[without + 2**player] - values[without]
        phi[player] = (each[size[without], None] * added).sum(0)
    return phi


def exact_values(utility: Utility, sizes: Sizes) -> Tensor:
    """Return a semivalue of up to twelve players by asking all coalitions, float64 ``[P, Q]``.

    Raises:
        ConfigurationError: There are more players.
    """
    return exact_semivalue(ask(utility, all_coalitions(utility.players)), utility.players, sizes)


_LOG_2 = 0.6931471805599453


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
