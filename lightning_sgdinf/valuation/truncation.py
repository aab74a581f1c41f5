"""Truncated rounds: an order is followed only until nothing more is gained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Truncation:
    """Stop an order when the value was close to that of everybody for more than ``patience`` players in a row.

    The rest of the order is credited with nothing, which biases what comes late towards 0, and the values no longer add
    up to the difference of the ends. Saves trainings where few examples make the model; on a hundred digits it saved
    two in a hundred.

    Attributes:
        tolerance: Close means within this part of the value of everybody, above 0.
        patience: Players in a row that may be close, 0 or more.
        ahead: Players of an order that are asked at once before one looks.
    """

    tolerance: float = 0.01
    patience: int = 5
    ahead: int = 25

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.patience < 0 or self.ahead < 1:
            raise ConfigurationError(
                "Truncation: expected tolerance above 0, patience 0 or more and ahead 1 or more, got "
                f"{self.tolerance}, {self.patience} and {self.ahead}"
            )

    def ask(self, coalitions: Tensor, ask: Callable[[Tensor], Tensor], full: Tensor) -> tuple[Tensor, int]:
        """Ask for growing coalitions of some orders until each is close for long enough, for every query.

        Args:
            coalitions: bool ``[R, K, P]``.
            ask: Gives the values ``[M, Q]`` of coalitions ``[M, P]``.
            full: The value of everybody, ``[Q]``.

        Returns:
            Values ``[R, K, Q]``, NaN where the order ended before, whatever was asked; and the number asked.
        """
        rounds, count, _ = coalitions.shape
        values = torch.full((rounds, count, len(full)), torch.nan, dtype=torch.float64)
        going, close = torch.ones(rounds, dtype=torch.bool), torch.zeros(rounds, dtype=torch.int64)
        asked = 0
        for start in range(0, count, self.ahead):
            stop = min(start + self.ahead, count)
            part = coalitions[going, start:stop]
            if not len(part):
                break
            answers = torch.full((rounds, stop - start, len(full)), torch.nan, dtype=torch.float64)
            answers[going] = ask(part.flatten(0, 1)).unflatten(0, part.shape[:2])
            asked += part.shape[0] * part.shape[1]
            for place in range(stop - start):
                now = answers[:, place]
                values[going, start + place] = now[going]
                near = ((now - full).abs() <= self.tolerance * full.abs()).all(1)
                close = torch.where(near, close + 1, 0)
                going = going & (close <= self.patience)
        return values, asked
