"""The value of training on some of the data: what every value in this room is made from.

A utility is a game: the players are training examples, or groups of them, a coalition is those that are trained on, and
its value is that of the queries afterwards. Coalitions are asked many at a time, since many models train at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError

Groups = Sequence[Sequence[int]]
"""Example ids of each player; examples of no group are always trained on."""


@runtime_checkable
class Utility(Protocol):
    """Values of coalitions of ``P`` players, for ``Q`` queries."""

    @property
    def players(self) -> int:
        """Return ``P``."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Return a name per query; their number is ``Q``."""
        ...

    def values(self, coalitions: Tensor) -> Tensor:
        """Return the queries' values of each coalition, float64 ``[M, Q]``.

        The same coalition has the same value whatever is asked with it, but for rounding.

        Args:
            coalitions: True where a player takes part, bool ``[M, P]``.
        """
        ...


@dataclass(frozen=True)
class FunctionUtility:
    """A game that a function of the coalition defines.

    Attributes:
        function: Is given a coalition, bool ``[P]``; returns its value, a number or ``[Q]``.
        players: ``P``.
        names: A name per query.
    """

    function: Callable[[Tensor], Tensor | float]
    players: int
    names: tuple[str, ...] = ("value",)

    def values(self, coalitions: Tensor) -> Tensor:
        """See `Utility`; one coalition after another."""
        rows = [torch.as_tensor(self.function(row), dtype=torch.float64).reshape(-1) for row in coalitions]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.names), dtype=torch.float64)


def everybody(utility: Utility) -> Tensor:
    """Return the coalition of all players, bool ``[1, P]``."""
    return torch.ones(1, utility.players, dtype=torch.bool)


def ask(utility: Utility, coalitions: Tensor) -> Tensor:
    """Return the values of coalitions ``[..., P]``, float64 ``[..., Q]``, each distinct one asked once.

    Raises:
        NonFiniteError: A value is NaN or infinite; says of which coalition.
    """
    rows = coalitions.reshape(-1, utility.players)
    if len(rows) == 0:
        return torch.zeros(*coalitions.shape[:-1], len(utility.names), dtype=torch.float64)
    distinct, place = torch.unique(rows, dim=0, return_inverse=True)
    values = utility.values(distinct).to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()):
        wrong = int((~torch.isfinite(values)).any(1).nonzero()[0])
        raise NonFiniteError(
            f"the value of training on {int(distinct[wrong].sum())} of {utility.players} players is "
            f"{values[wrong].tolist()}; values need a query that is a number for every coalition, the empty one too"
        )
    return values[place].reshape(*coalitions.shape[:-1], -1)


def check_groups(groups: Groups, examples: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of example ids as tuples.

    Raises:
        ConfigurationError: Ids out of range, an example in two groups, an empty group, or no group.
    """
    players = tuple(tuple(int(i) for i in members) for members in groups)
    everyone = [i for members in players for i in members]
    wrong = sorted({i for i in everyone if not 0 <= i < examples})
    if wrong or not players or not all(players) or len(set(everyone)) < len(everyone):
        twice = sorted({i for i in everyone if everyone.count(i) > 1}) if len(everyone) < 10_000 else []
        raise ConfigurationError(
            f"groups: expected one or more sets of ids in 0 .. {examples - 1}, none of them empty and no id in two of "
            f"them, got {len(players)} groups"
            + (f" with ids {wrong[:5]} out of range" if wrong else "")
            + (f" with ids {twice[:5]} in two" if twice else "")
            + (" of which one is empty" if not all(players) else "")
        )
    return players


def groups_of(labels: Sequence[object]) -> tuple[tuple[int, ...], ...]:
    """Return the groups of examples that have the same label (class, source, annotator), in the labels' order.

    Args:
        labels: One per example; sorted by their text.
    """
    by_label: dict[str, list[int]] = {}
    for example, label in enumerate(labels):
        by_label.setdefault(str(label), []).append(example)
    return tuple(tuple(by_label[label]) for label in sorted(by_label))
