"""Data Banzhaf: what an example adds, on average over every coalition of the others, all coalitions alike.

Half of the examples are trained on, more or less. Rankings by it stand noise in the trainings better than any other
semivalue's, and every training serves every example (maximum sample reuse): the error does not grow with the number of
examples. The values do not add up to what all examples are worth.

References:
    Wang and Jia, "Data Banzhaf: A Robust Data Valuation Framework for Machine Learning", AISTATS 2023
    (arXiv:2205.15466).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.valuation.base import SampledValue
from lightning_sgdinf.valuation.control import Gains
from lightning_sgdinf.valuation.schemes import REUSED, Reuse
from lightning_sgdinf.valuation.semivalues import EXACT_PLAYERS, banzhaf_sizes
from lightning_sgdinf.valuation.shapley import exact_valuation
from lightning_sgdinf.valuation.utility import Utility
from lightning_sgdinf.valuation.valuation import Valuation


@dataclass(frozen=True, kw_only=True)
class Banzhaf(SampledValue):
    """Banzhaf values; see the module's text. Up to twelve players are valued exactly where that takes fewer trainings.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.valuation.Banzhaf
          coalitions: 2000

    Attributes:
        coalitions: Random coalitions to train on, at most; rounded up to a multiple of 20. ``"all"`` asks every one, of
            at most twelve players.
        sampling: ``"uniform"``, or ``"antithetic"`` for coalitions and their complements.
        control: Predicts what examples add; the values are sampled around it, without bias.

    Raises:
        ConfigurationError: Numbers out of range or arguments that do not go together.
    """

    coalitions: int | Literal["all"] = 2000
    sampling: Literal["uniform", "antithetic"] = "uniform"
    control: Gains | None = None

    def __post_init__(self) -> None:
        if self.sampling not in ("uniform", "antithetic"):
            raise ConfigurationError(f"sampling: expected 'uniform' or 'antithetic', got {self.sampling!r}")
        if self.coalitions != "all" and (not isinstance(self.coalitions, int) or self.coalitions < 1):
            raise ConfigurationError(f"coalitions: expected a number of at least 1, or 'all', got {self.coalitions!r}")

    @property
    def predictor(self) -> Gains | None:
        """See `Value`."""
        return self.control

    def value(self, utility: Utility, *, gains: Tensor | None = None, progress: bool = False) -> Valuation:
        """Return the values of a utility's players; see `Value`.

        Raises:
            ConfigurationError: ``coalitions="all"`` of more than twelve players.
        """
        players = utility.players
        if self.coalitions == "all" or (players <= EXACT_PLAYERS and 2**players <= self.coalitions):
            return exact_valuation(utility, banzhaf_sizes, self.jobs)
        scheme = Reuse(players, self.seed, self.sampling == "antithetic", gains)
        about = ("reuse", players, self.seed, self.sampling)
        return self.play(utility, -(-self.coalitions // REUSED), about, progress=progress).values(utility, scheme)
