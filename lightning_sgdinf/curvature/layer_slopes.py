"""Inputs and output slopes of linear and convolutional layers in one pass: each example's gradient is their product.

For a linear layer with inputs ``a`` and output slopes ``d`` an example's gradient is the outer product ``d a^T``,
summed over positions where there are several; a convolution is a linear layer on the patches that it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.replay import OpenedRun


@dataclass(slots=True, eq=False)
class WatchedLayer:
    """A layer, and what it saw in the last pass.

    Attributes:
        name: Of the module.
        module: The layer.
        biased: Its bias is trained.
        inputs: Of its calls in the last pass.
        outputs: Likewise.
    """

    name: str
    module: nn.Linear | nn.Conv1d | nn.Conv2d
    biased: bool
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Return the names of its trained parameters, the weight first."""
        dot = f"{self.name}." if self.name else ""
        return (f"{dot}weight", f"{dot}bias") if self.biased else (f"{dot}weight",)

    def patches(self) -> Tensor:
        """Return its inputs by example and position, ``[B, T, I]``, with a last 1 for a trained bias."""
        x, module = self.inputs[0].detach(), self.module
        if isinstance(module, nn.Linear):
            rows = x.reshape(len(x), -1, x.shape[-1])
        else:
            flat = isinstance(module, nn.Conv1d)
            sizes = {n: tuple(getattr(module, n)) for n in ("kernel_size", "dilation", "padding", "stride")}
            if flat:
                x = x[:, :, None]
                sizes = {n: (0 if n == "padding" else 1, *size) for n, size in sizes.items()}
            rows = F.unfold(x, **sizes).transpose(1, 2)
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2) if self.biased else rows

    def slopes(self, output_slope: Tensor) -> Tensor:
        """Return slopes at its output by example and position, ``[B, T, O]``."""
        if isinstance(self.module, nn.Linear):
            return output_slope.reshape(len(output_slope), -1, output_slope.shape[-1])
        return output_slope.flatten(2).transpose(1, 2)

    def split(self, joined: Tensor) -> list[Tensor]:
        """Return ``[O, I]`` (with the bias as last column) by parameter, in the parameters' shapes."""
        shape = self.module.weight.shape
        if not self.biased:
            return [joined.reshape(shape)]
        return [joined[:, :-1].reshape(shape), joined[:, -1]]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what `split` splits as one matrix; any leading dimension is kept."""
        lead = parts[0].shape[: parts[0].ndim - self.module.weight.ndim]
        weight = parts[0].reshape(*lead, self.module.weight.shape[0], -1)
        return torch.cat([weight, parts[1][..., None]], -1) if self.biased else weight


@contextmanager
def watched_layers(run: OpenedRun) -> Iterator[list[WatchedLayer]]:
    """Watch the layers whose trained weights are theirs alone, inside the ``with`` block.

    Layers of other kinds, grouped convolutions and those with a padding that is not zeros are left out, as are weights
    that several modules share.
    """
    trained = set(run.objective.vector.names)
    owners: dict[int, int] = {}
    for module in run.objective.module.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers, handles = [], []
    for name, module in run.objective.module.named_modules():
        dot = f"{name}." if name else ""
        if f"{dot}weight" not in trained or not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            continue
        if not isinstance(module, nn.Linear) and not _is_plain(module):
            continue
        if any(owners[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
            continue
        layer = WatchedLayer(name, module, f"{dot}bias" in trained)
        layers.append(layer)
        handles.append(module.register_forward_hook(_watch(layer)))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def begin_pass(layers: Sequence[WatchedLayer]) -> None:
    """Forget what layers saw before."""
    for layer in layers:
        layer.inputs.clear()
        layer.outputs.clear()


def _is_plain(module: nn.Conv1d | nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _watch(layer: WatchedLayer):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module
        layer.inputs.append(inputs[0])
        layer.outputs.append(output)

    return hook
