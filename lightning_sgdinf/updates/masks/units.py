"""Whole units of each layer, by the rank of their scores; the paper's highest, lowest and exclusive ``k``.

Each layer gives ``int(ratio * size)`` of its parameters: the weights and bias of as many units as fit, in the order of
the criterion, and what is left over from random weights of the next one.

References:
    Lyu et al., "Deeper Understanding of Black-box Predictions via Generalized Influence Functions", 2023
    (arXiv:2312.05586).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import Layer, choose_by_layer, expect_ratio
from lightning_sgdinf.updates.masks.unit_scores import By, unit_scores


@dataclass(frozen=True, slots=True)
class HighestUnits:
    """The units that respond most.

    Attributes:
        ratio: Part of each layer's parameters, in ``(0, 1]``.
        by: What the response is: mean outputs, or mean gradients at them.
        seed: Of the choice within the last unit.
    """

    ratio: float = 0.05
    by: By = "outputs"
    seed: int = 0

    def __post_init__(self) -> None:
        expect_ratio(type(self).__name__, self.ratio)

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return their parameters; see `ParameterCriterion.choose`."""

        def highest(scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
            del touched, generator
            return scores.argsort(descending=True, stable=True)

        return _ranked(run, model, ids, self.by, self.ratio, self.seed, highest)


@dataclass(frozen=True, slots=True)
class LowestUnits:
    """The units that respond least; attributes as of `HighestUnits`."""

    ratio: float = 0.05
    by: By = "outputs"
    seed: int = 0

    def __post_init__(self) -> None:
        expect_ratio(type(self).__name__, self.ratio)

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return their parameters; see `ParameterCriterion.choose`."""

        def lowest(scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
            del touched, generator
            return scores.argsort(stable=True)

        return _ranked(run, model, ids, self.by, self.ratio, self.seed, lowest)


@dataclass(frozen=True, slots=True)
class ExclusiveUnits:
    """Random units, but none of those that `HighestUnits` takes; attributes as of that, ``ratio`` at most 0.5."""

    ratio: float = 0.05
    by: By = "outputs"
    seed: int = 0

    def __post_init__(self) -> None:
        expect_ratio(type(self).__name__, self.ratio, 0.5)

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return their parameters; see `ParameterCriterion.choose`."""

        def others(scores: Tensor, touched: int, generator: torch.Generator) -> Tensor:
            rest = scores.argsort(descending=True, stable=True)[touched:]
            return rest[torch.randperm(len(rest), generator=generator)]

        return _ranked(run, model, ids, self.by, self.ratio, self.seed, others)


def _ranked(
    run: OpenedRun,
    model: ModelState,
    ids: Sequence[int],
    by: By,
    ratio: float,
    seed: int,
    order: Callable[[Tensor, int, torch.Generator], Tensor],
) -> ParameterMask:
    """Choose units in an order, a function of scores, the number of units that are touched, and a generator."""
    scores = unit_scores(run, model, ids, by)
    generator = torch.Generator().manual_seed(seed)

    def choose(layer: Layer) -> dict[str, Tensor]:
        per_unit = layer.inputs + layer.biased
        whole, left = divmod(int(ratio * layer.size), per_unit)
        ranked = order(scores[layer.name], whole + (left > 0), generator)
        weights = torch.zeros(layer.units, layer.inputs, dtype=torch.bool)
        biases = torch.zeros(layer.units, dtype=torch.bool)
        weights[ranked[:whole]] = True
        biases[ranked[:whole]] = True
        if left and whole < len(ranked):
            some = torch.randperm(layer.inputs, generator=generator)[: min(left, layer.inputs)]
            weights[ranked[whole], some] = True
        return layer.mask_of(weights, biases)

    return choose_by_layer(run, choose)
