"""Random orders of the players and random coalitions, each drawn from its own seed.

What round ``r`` draws depends on the seed and on ``r`` alone, so it is the same whatever is taken at once, in whatever
process, and a computation that was stopped goes on with the rounds that it would have had.
"""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError

Sampling = Literal["every_size", "uniform", "antithetic", "stratified"]
"""One random coalition of every size; or orders: independent, in pairs of opposites, or every player once in each tenth
of the positions."""

STRATA = 10
"""Parts of an order; as many rounds have a player once in each."""

BLOCKS: dict[str, int] = {"every_size": 1, "uniform": 1, "antithetic": 2, "stratified": STRATA}
"""Rounds that belong together: blocks are independent of each other, the rounds in one are not."""


def check_sampling(sampling: str) -> None:
    """Refuse what is no `Sampling`.

    Raises:
        ConfigurationError: It is none.
    """
    if sampling not in BLOCKS:
        raise ConfigurationError(f"sampling: expected one of {', '.join(get_args(Sampling))}, got {sampling!r}")


def draw_order(sampling: Sampling, seed: int, round_: int, players: int) -> Tensor:
    """Return the order in which players join in a round, int64 ``[P]``; each order is equally likely.

    ``"antithetic"``: every other round has the reverse of the one before. ``"stratified"``: of ten rounds each has a
    player in another tenth of the positions; within its tenth the order is drawn anew.

    Args:
        sampling: How rounds belong together.
        seed: Of all rounds.
        round_: Number of the round.
        players: ``P``.
    """
    block, place = divmod(round_, BLOCKS[sampling])
    order = np.random.default_rng([seed, block]).permutation(players)
    if sampling == "antithetic" and place:
        order = order[::-1].copy()
    if sampling == "stratified":
        random = np.random.default_rng([seed, block, 1 + place])
        shifts = np.random.default_rng([seed, block, 0]).permutation(STRATA)
        order = np.roll(order, round(players * int(shifts[place]) / STRATA))
        bounds = [round(players * part / STRATA) for part in range(STRATA + 1)]
        for start, stop in itertools.pairwise(bounds):
            order[start:stop] = random.permutation(order[start:stop])
    return torch.from_numpy(order)


def prefixes(order: Tensor) -> Tensor:
    """Return the coalitions of the first ``1 .. P - 1`` players of an order, bool ``[P - 1, P]``."""
    players = len(order)
    joined = torch.empty(players, dtype=torch.int64)
    joined[order] = torch.arange(players)
    return joined[None, :] < torch.arange(1, players)[:, None]


def draw_of_each_size(seed: int, round_: int, players: int, *, paired: bool) -> Tensor:
    """Return one random coalition of each size ``1 .. P - 1``, bool ``[P - 1, P]``.

    Args:
        seed: Of all rounds.
        round_: Number of the round.
        players: ``P``.
        paired: The coalition of ``P - s`` players is the complement of that of ``s``.
    """
    places = np.random.default_rng([seed, round_]).random((players - 1, players)).argsort(1).argsort(1)
    coalitions = torch.from_numpy(places) < torch.arange(1, players)[:, None]
    if paired:
        half = (players - 1) // 2
        coalitions[players - 1 - half :] = ~coalitions[:half].flip(0)
    return coalitions


def draw_coalitions(seed: int, round_: int, players: int, count: int, *, paired: bool) -> Tensor:
    """Return coalitions that each player is in with probability one half, bool ``[count, P]``.

    Args:
        seed: Of all rounds.
        round_: Number of the round.
        players: ``P``.
        count: Even, if paired.
        paired: Each of the second half is the complement of one of the first.
    """
    random = np.random.default_rng([seed, round_])
    coalitions = torch.from_numpy(random.random((count, players)) < 0.5)
    if paired:
        coalitions[count // 2 :] = ~coalitions[: count // 2]
    return coalitions
