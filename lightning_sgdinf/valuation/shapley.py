"""Data Shapley: what an example adds, on average over every coalition of the others, all sizes alike.

Sampled by orders in which examples join one after another (truncated Monte Carlo), or, with a predictor, by coalitions
of every size with a control variate; `lightning_sgdinf.valuation.schemes` has the formulas. Up to twelve players are
valued exactly where that takes fewer trainings.

Cost: an order of ``P`` players takes ``P - 1`` trainings, many at once: with a hundred examples, 25 orders find wrong
labels, 100 rank as another hundred would (.9).

References:
    Ghorbani and Zou, "Data Shapley: Equitable Valuation of Data for Machine Learning", ICML 2019 (arXiv:1904.02868).
    Kwon and Zou, "Beta Shapley", AISTATS 2022 (arXiv:2110.14049).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.valuation.base import SampledValue
from lightning_sgdinf.valuation.control import Gains
from lightning_sgdinf.valuation.sampling import Sampling, check_sampling
from lightning_sgdinf.valuation.schemes import Ends, EverySize, Orders
from lightning_sgdinf.valuation.semivalues import (
    EXACT_PLAYERS,
    Sizes,
    all_coalitions,
    beta_sizes,
    exact_semivalue,
    shapley_sizes,
)
from lightning_sgdinf.valuation.spread import Asking
from lightning_sgdinf.valuation.truncation import Truncation
from lightning_sgdinf.valuation.utility import Utility
from lightning_sgdinf.valuation.valuation import Valuation


@dataclass(frozen=True, kw_only=True)
class Shapley(SampledValue):
    """Shapley values; see the module's text.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.valuation.Shapley
          permutations: 100

    Attributes:
        permutations: Orders to sample, at most; ``"all"`` asks every coalition, of at most twelve players. An
        antithetic
            or stratified sampling takes whole blocks of 2 or 10.
        sampling: ``"uniform"`` (independent orders), ``"antithetic"`` (each order and its reverse), ``"stratified"``
        (an
            example once in each tenth of the positions in ten orders); or ``"every_size"``: in place of an order, as
            many random coalitions, one of each size and in pairs of complements, each of them used for all examples.
            The same values without bias, with a fraction of the variance.
        truncation: Ends an order when little more is gained; biased. ``None`` follows every order to its end.
        control: Predicts what examples add; ``"every_size"`` then samples what the prediction leaves, without bias.
            ``None`` predicts by size alone.

    Raises:
        ConfigurationError: Numbers out of range or arguments that do not go together.
    """

    permutations: int | Literal["all"] = 100
    sampling: Sampling = "uniform"
    truncation: Truncation | None = None
    control: Gains | None = None

    def __post_init__(self) -> None:
        check_sampling(self.sampling)
        number = self.permutations
        if number != "all" and (not isinstance(number, int) or number < 1):
            raise ConfigurationError(f"permutations: expected a number of at least 1, or 'all', got {number!r}")
        if self.sampling == "every_size" and self.truncation is not None:
            raise ConfigurationError("truncation ends orders; with sampling='every_size' there are none, leave it out")
        if self.sampling != "every_size" and self.control is not None:
            raise ConfigurationError(
                "control: what a predictor of sums says that an example adds is the same in every order, so there is "
                f"nothing to gain with sampling={self.sampling!r}; use sampling='every_size'"
            )

    @property
    def predictor(self) -> Gains | None:
        """See `Value`."""
        return self.control

    @property
    def sizes(self) -> Sizes:
        """Return the semivalue's weights."""
        return shapley_sizes

    def value(self, utility: Utility, *, gains: Tensor | None = None, progress: bool = False) -> Valuation:
        """Return the values of a utility's players; see `Value`.

        Raises:
            ConfigurationError: ``permutations="all"`` of more than twelve players.
        """
        players = utility.players
        if self.permutations == "all" or _all_are_fewer(players, self.permutations):
            return exact_valuation(utility, self.sizes, self.jobs)
        about = (self.sampling, players, self.seed, self.truncation)
        if self.sampling == "every_size":
            gains = torch.zeros(players, 1) if gains is None else gains
            scheme = EverySize(players, self.sizes, self.seed, gains)
        else:
            scheme = Orders(players, self.sizes, self.seed, self.sampling)
        play = self.play(utility, self.permutations, about, progress=progress)
        return replace(play, truncation=self.truncation).values(utility, scheme)


@dataclass(frozen=True, kw_only=True)
class BetaShapley(Shapley):
    """Shapley values that lean towards small coalitions, where a training set is short of examples, or large ones.

    Orders sampled and kept in a file serve all weights: only the credit differs.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.valuation.BetaShapley
          alpha: 16
          beta: 1

    Attributes:
        alpha: Above 0; the larger, the more small coalitions count.
        beta: Above 0; the larger, the more large ones count. 1 and 1 is Shapley's.
    """

    alpha: float = 16.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < inf and 0 < self.beta < inf):
            raise ConfigurationError(f"BetaShapley: expected alpha and beta above 0, got {self.alpha} and {self.beta}")
        super().__post_init__()

    @property
    def sizes(self) -> Sizes:
        """Return the semivalue's weights."""
        return beta_sizes(self.alpha, self.beta)


def exact_valuation(utility: Utility, sizes: Sizes, jobs: int = 1) -> Valuation:
    """Return a semivalue of up to twelve players from all coalitions.

    Raises:
        ConfigurationError: There are more players.
    """
    began, process = time.perf_counter(), time.process_time()
    coalitions = all_coalitions(utility.players)
    values = Asking(utility, jobs)(coalitions)
    return Valuation(
        values=exact_semivalue(values, utility.players, sizes),
        standard_error=None,
        queries=utility.names,
        ends=Ends(values[0], values[-1]),
        rounds=math.factorial(utility.players),
        trainings=len(coalitions),
        agreement=None,
        seconds=time.perf_counter() - began,
        process_seconds=time.process_time() - process,
        exact=True,
    )


def _all_are_fewer(players: int, permutations: int) -> bool:
    return players <= EXACT_PLAYERS and 2**players <= permutations * (players - 1) + 2
