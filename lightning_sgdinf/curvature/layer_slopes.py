"""Inputs and output slopes of linear and convolutional layers in one pass: each example's gradient is their product.

For a linear layer with inputs ``a`` and output slopes ``d`` an example's gradient is the outer product ``d a^T``,
summed over positions where there are several; a convolution is a linear layer on the patches that it sees. That holds
where a layer is called once, its first dimension is the examples, and its weights are used nowhere else, which nothing
says of a model: `separable_layers` looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """A call of a layer.

    Attributes:
        input: What went in.
        output: Its place in the graph, which stays where it is when the output is changed in place, as by
            ``ReLU(inplace=True)``; ``None`` without a graph.
        shape: Of the output.
    """

    input: Tensor
    output: GradientEdge | None
    shape: torch.Size


@dataclass(slots=True, eq=False)
class WatchedLayer:
    """A layer, and what it saw in the last pass.

    Attributes:
        name: Of the module.
        module: The layer.
        biased: Its bias is trained.
        calls: In the last pass.
    """

    name: str
    module: nn.Linear | nn.Conv1d | nn.Conv2d
    biased: bool
    calls: list[LayerCall] = field(default_factory=list)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Return the names of its trained parameters, the weight first."""
        dot = f"{self.name}." if self.name else ""
        return (f"{dot}weight", f"{dot}bias") if self.biased else (f"{dot}weight",)

    def patches(self) -> Tensor:
        """Return its inputs by example and position, ``[B, T, I]``, with a last 1 for a trained bias."""
        x, module = self.calls[0].input.detach(), self.module
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

    def called_once(self, count: int) -> bool:
        """Return whether the last pass was one call on ``count`` rows, with a graph."""
        return len(self.calls) == 1 and self.calls[0].output is not None and len(self.calls[0].input) == count

    def slopes(self, output_slope: Tensor | None) -> Tensor:
        """Return slopes at its output by example and position, ``[B, T, O]``; zeros for ``None``."""
        if output_slope is None:
            output_slope = self.calls[0].input.new_zeros(self.calls[0].shape)
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
        layer.calls.clear()


def output_slopes(layers: Sequence[WatchedLayer], logits: Tensor, root: Tensor) -> list[Tensor]:
    """Return slopes at the layers' outputs, ``[B, T, O]`` each; zeros where the logits do not come from one.

    Args:
        layers: Called once in the last pass.
        logits: Of that pass.
        root: The slope at the logits.
    """
    if not layers:
        return []
    edges: Any = [layer.calls[0].output for layer in layers]
    slopes = torch.autograd.grad(logits, edges, root, retain_graph=True, allow_unused=True)
    return [layer.slopes(slope) for layer, slope in zip(layers, slopes, strict=True)]


def separable_layers(
    layers: Sequence[WatchedLayer], logits: Tensor, parameters: Mapping[str, Tensor]
) -> list[WatchedLayer]:
    """Return the layers in which an example's gradient is the product of its inputs and output slopes.

    Random slopes at the logits of one half of the examples have to give nothing in the rows of the other half (or rows
    are no examples: positions come first, or examples are coupled), and the layer's whole gradient as the sum of the
    products (or the weights are used outside of it, too).

    Args:
        layers: After a pass.
        logits: Of that pass, ``B`` examples.
        parameters: Of the model, by name.
    """
    once = [layer for layer in layers if layer.called_once(len(logits))]
    half = len(logits) // 2
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
    root[:half] = 0
    names = [name for layer in once for name in layer.parameter_names]
    weights = [parameters[name] for name in names]
    if not once:
        return []
    whole = torch.autograd.grad(logits, weights, root, retain_graph=True, allow_unused=True)
    gradients = dict(zip(names, whole, strict=True))
    kept = []
    for layer, slopes in zip(once, output_slopes(once, logits, root), strict=True):
        if bool((slopes[:half] != 0).any()):
            continue
        own = layer.split(torch.einsum("bto,bti->oi", slopes, layer.patches()))
        if all(_equal(part, gradients[name]) for part, name in zip(own, layer.parameter_names, strict=True)):
            kept.append(layer)
    return kept


def _equal(product: Tensor, gradient: Tensor | None) -> bool:
    """Return whether two sums are equal up to their rounding."""
    if gradient is None:
        return not bool(product.any())
    return bool((product - gradient).abs().max() <= torch.finfo(gradient.dtype).eps ** 0.5 * gradient.abs().max())


def _is_plain(module: nn.Conv1d | nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _watch(layer: WatchedLayer):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module
        edge = get_gradient_edge(output) if output.requires_grad else None
        layer.calls.append(LayerCall(inputs[0], edge, output.shape))

    return hook
