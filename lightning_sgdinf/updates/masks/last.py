"""The parameters of the last layers: what is tuned where the features are to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import choose_by_layer, layers_of


@dataclass(frozen=True, slots=True)
class LastLayers:
    """The weights and biases of the last linear or convolutional layers, in the model's order.

    Attributes:
        count: Of layers, at least 1.
    """

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigurationError(f"LastLayers(count): expected at least 1, got {self.count}")

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return them; see `ParameterCriterion.choose`."""
        del model, ids
        last = {layer.name for layer in layers_of(run)[-self.count :]}
        return choose_by_layer(
            run,
            lambda layer: layer.mask_of(
                torch.full((layer.units, layer.inputs), layer.name in last),
                torch.full((layer.units,), layer.name in last),
            ),
        )
