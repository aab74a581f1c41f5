"""The layers whose units criteria score: convolutions and linear layers, as the paper takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of ``units`` outputs, each with ``inputs`` weights and perhaps a bias.

    Attributes:
        name: Of the module.
        module: The layer.
        units: Output features or channels.
        inputs: Weights per unit.
        biased: Its bias is trained.
        axis: Of the units in the layer's output, counted from the end.
    """

    name: str
    module: nn.Module
    units: int
    inputs: int
    biased: bool
    axis: int

    @property
    def size(self) -> int:
        """Return the number of its trained parameters."""
        return self.units * (self.inputs + self.biased)

    def mask_of(self, weights: Tensor, biases: Tensor) -> dict[str, Tensor]:
        """Return masks by parameter name.

        Args:
            weights: Bool ``[units, inputs]``.
            biases: Bool ``[units]``; not used where none is trained.
        """
        own = {f"{self.name}.weight" if self.name else "weight": weights}
        if self.biased:
            own[f"{self.name}.bias" if self.name else "bias"] = biases
        return own


def layers_of(run: OpenedRun) -> list[Layer]:
    """Return the convolutions and linear layers whose weights are trained, in the model's order.

    Raises:
        ConfigurationError: There are none.
    """
    trained = set(run.objective.vector.names)
    layers = []
    for name, module in run.objective.module.named_modules():
        dot = f"{name}." if name else ""
        spatial = next((n for kind, n in _CONVOLUTIONS.items() if isinstance(module, kind)), None)
        if (spatial is None and not isinstance(module, nn.Linear)) or f"{dot}weight" not in trained:
            continue
        shape = dict(module.named_parameters())["weight"].shape
        axis = -1 if spatial is None else -(spatial + 1)
        layers.append(Layer(name, module, shape[0], prod(shape[1:]), f"{dot}bias" in trained, axis))
    if not layers:
        raise ConfigurationError(
            "expected a model with a trained convolution or linear layer, whose units can be scored, got none; use "
            "AllParameters()"
        )
    return layers


def choose_by_layer(run: OpenedRun, choose: Callable[[Layer], dict[str, Tensor]]) -> ParameterMask:
    """Return what a function chooses in each layer; parameters of other layers are not chosen."""
    chosen: dict[str, Tensor] = {}
    for layer in layers_of(run):
        chosen.update(choose(layer))
    vector = run.objective.vector
    sizes = [prod(shape) for shape in vector.shapes]
    parts = [
        chosen[n].reshape(-1) if n in chosen else torch.zeros(size, dtype=torch.bool)
        for n, size in zip(vector.names, sizes, strict=True)
    ]
    return ParameterMask(torch.cat(parts))


def expect_ratio(owner: str, ratio: float, most: float = 1.0) -> None:
    """Refuse a ratio that is not in ``(0, most]``."""
    if not 0 < ratio <= most:
        raise ConfigurationError(f"{owner}(ratio): expected a value in (0, {most:g}], got {ratio}")
