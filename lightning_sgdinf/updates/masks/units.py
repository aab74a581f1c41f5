"""Whole units of each layer, by the rank of their scores; the paper's highest, lowest and exclusive ``k``.

Each layer gives ``int(ratio * size)`` of its parameters: the weights and bias of as many units as fit, in the order of
the criterion, and what is left over from random weights of the next one.

References:
    Lyu et al., "Deeper Understanding of Black-box Predictions via Generalized Influence Functions", 2023
    (arXiv:2312.05586).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import Layer, choose_by_layer, expect_ratio
from lightning_sgdinf.updates.masks.unit_scores import By, unit_scores


@dataclass(frozen=True)
class _RankedUnits(ABC):
    """Units in an order that a member of the family defines.

    Attributes:
        ratio: Part of each layer's parameters, in ``(0, most]``.
        by: What the response is: mean outputs, or mean gradients at them.
        seed: Of the choice within the last unit.
        most: The largest ratio.
    """

    ratio: float = 0.05
    by: By = "outputs"
    seed: int = 0
    most: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        expect_ratio(type(self).__name__, self.ratio, self.most)

    @abstractmethod
    def order(self, scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
        """Return the numbers of a layer's units, those to be taken first.

        Args:
            scores: Of its units.
            touched: How many are taken, in whole or part.
            generator: Of what is random.
        """
        ...

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return their parameters; see `ParameterCriterion.choose`."""
        scores = unit_scores(run, model, ids, self.by)
        generator = torch.Generator().manual_seed(self.seed)

        def of_layer(layer: Layer) -> dict[str, Tensor]:
            per_unit = layer.inputs + layer.biased
            whole, left = divmod(int(self.ratio * layer.size), per_unit)
            ranked = self.order(scores[layer.name], whole + (left > 0), generator)
            weights = torch.zeros(layer.units, layer.inputs, dtype=torch.bool)
            biases = torch.zeros(layer.units, dtype=torch.bool)
            weights[ranked[:whole]] = True
            biases[ranked[:whole]] = True
            if left and whole < len(ranked):
                some = torch.randperm(layer.inputs, generator=generator)[: min(left, layer.inputs)]
                weights[ranked[whole], some] = True
            return layer.mask_of(weights, biases)

        return choose_by_layer(run, of_layer)


class HighestUnits(_RankedUnits):
    """The units that respond most.

    Attributes:
        ratio: Part of each layer's parameters, in ``(0, 1]``.
        by: What the response is: mean outputs, or mean gradients at them.
        seed: Of the choice within the last unit.
    """

    def order(self, scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
        """Return the units from the highest score down."""
        del touched, generator
        return scores.argsort(descending=True, stable=True)


class LowestUnits(_RankedUnits):
    """The units that respond least; attributes as of `HighestUnits`."""

    def order(self, scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
        """Return the units from the lowest score up."""
        del touched, generator
        return scores.argsort(stable=True)


class ExclusiveUnits(_RankedUnits):
    """Random units, but none of those that `HighestUnits` takes; attributes as of that, ``ratio`` at most 0.5."""

    most: ClassVar[float] = 0.5

    def order(self, scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
        """Return the others in a random order."""
        rest = scores.argsort(descending=True, stable=True)[touched:]
        return rest[torch.randperm(len(rest), generator=generator)]
