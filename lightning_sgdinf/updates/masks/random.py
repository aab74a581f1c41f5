"""Random parameters of each layer: the control for every criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import Layer, choose_by_layer, expect_ratio


@dataclass(frozen=True, slots=True)
class RandomParameters:
    """A random part of each layer's weights, and of its biases.

    Attributes:
        ratio: In ``(0, 1]``; ``int(ratio * count)`` of either kind.
        seed: Of the choice.
    """

    ratio: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        expect_ratio("RandomParameters", self.ratio)

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return them; see `ParameterCriterion.choose`. Model and examples do not matter."""
        del model, ids
        generator = torch.Generator().manual_seed(self.seed)

        def some(count: int) -> Tensor:
            chosen = torch.zeros(count, dtype=torch.bool)
            chosen[torch.randperm(count, generator=generator)[: int(self.ratio * count)]] = True
            return chosen

        def choose(layer: Layer) -> dict[str, Tensor]:
            weights = some(layer.units * layer.inputs).view(layer.units, layer.inputs)
            return layer.mask_of(weights, some(layer.units))

        return choose_by_layer(run, choose)
