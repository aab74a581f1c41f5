"""Random parameters of the units whose score exceeds a threshold.

The threshold of each layer begins at the same value and is lowered by 0.01 until the units above it have parameters
enough. (In the published code it was not set back between layers, so that a layer's choice depended on those before.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import Layer, choose_by_layer, expect_ratio
from lightning_sgdinf.updates.masks.unit_scores import By, unit_scores

LOWERED_BY = 0.01


@dataclass(frozen=True, slots=True)
class ThresholdUnits:
    """Random parameters of strongly responding units.

    Attributes:
        ratio: Part of each layer's parameters, in ``(0, 1]``.
        threshold: Where it begins.
        by: What the response is; see `HighestUnits`.
        seed: Of the choice among the parameters of these units.
    """

    ratio: float = 0.05
    threshold: float = 1.0
    by: By = "outputs"
    seed: int = 0

    def __post_init__(self) -> None:
        expect_ratio("ThresholdUnits", self.ratio)

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return them; see `ParameterCriterion.choose`."""
        scores = unit_scores(run, model, ids, self.by)
        generator = torch.Generator().manual_seed(self.seed)

        def choose(layer: Layer) -> dict[str, Tensor]:
            budget, own, threshold = int(self.ratio * layer.size), scores[layer.name], self.threshold
            above = own > threshold
            while int(above.sum()) * (layer.inputs + layer.biased) < budget:
                threshold -= LOWERED_BY
                above = own > threshold  # scores are not negative: below 0 all are above
            pool = above[:, None].expand(layer.units, layer.inputs + layer.biased).reshape(-1).nonzero()[:, 0]
            chosen = torch.zeros(layer.size, dtype=torch.bool)
            chosen[pool[torch.randperm(len(pool), generator=generator)[:budget]]] = True
            chosen = chosen.view(layer.units, layer.inputs + layer.biased)
            biases = chosen[:, -1] if layer.biased else torch.zeros(layer.units, dtype=torch.bool)
            return layer.mask_of(chosen[:, : layer.inputs], biases)

        return choose_by_layer(run, choose)
