"""Games to value, and their values by brute force: all orders of the players, which share nothing with the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_sgdinf.valuation import FunctionUtility


def table_game(players: int, queries: int = 2, seed: int = 0) -> FunctionUtility:
    """A game whose values are random numbers, and so as little additive as can be."""
    table = torch.rand(2**players, queries, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bits = 2 ** torch.arange(players)
    return FunctionUtility(lambda c: table[int((c * bits).sum())], players, tuple(f"q{q}" for q in range(queries)))


def additive_game(players: int, noise: float, seed: int = 0) -> tuple[FunctionUtility, Tensor]:
    """A game that is a sum of worths, and a little more; and the worths ``[P]``."""
    worths = torch.randn(players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def value(coalition: Tensor) -> Tensor:
        own = torch.Generator().manual_seed(int((coalition * 2 ** torch.arange(players)).sum()))
        return worths[coalition].sum() + noise * torch.randn((), generator=own, dtype=torch.float64)

    return FunctionUtility(value, players), worths


def by_all_orders(game: FunctionUtility, credit: Callable[[int], float] = lambda size: 1.0) -> Tensor:
    """The mean over all orders of what each player adds, times a credit by the number before it."""
    players = range(game.players)
    rows = torch.tensor([[bool(c >> i & 1) for i in players] for c in range(2**game.players)])
    values = game.values(rows).T.tolist()  # by query, and by the bits of the members
    phi = torch.zeros(game.players, len(game.names), dtype=torch.float64)
    for query, value in enumerate(values):
        sums = [0.0] * game.players
        for order in itertools.permutations(players):
            members = 0
            for place, player in enumerate(order):
                joined = members | 1 << player
                sums[player] += credit(place) * (value[joined] - value[members])
                members = joined
        phi[:, query] = torch.tensor(sums, dtype=torch.float64)
    return phi / math.factorial(game.players)
