"""Layers of many models at once, where ``torch.func.vmap`` alone would waste time.

A first layer sees the same batch in every model: their weights side by side are one wide layer, whose passes are single
large matrix products. A convolution with weights of its own per model becomes a grouped one, which is good for small
images and slow for large ones; these are convolved one model at a time, while everything around them stays vectorised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.kernels.intercept import Handler

LARGE = 4e6
"""Multiplications per model from which a convolution is done one model at a time on a CPU."""

Axes = tuple[int | None, ...]


class _Linear(torch.autograd.Function):
    """``F.linear`` with a vectorisation of its own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: only the vectorisation is ever differentiated, by its operations."""

    @staticmethod
    def vmap(info: Any, in_dims: Axes, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        """Apply all models, in the first dimension of ``[L, ...]``; a dimension of ``None`` is the same for all."""
        count = info.batch_size
        w = weight.expand(count, -1, -1) if in_dims[1] is None else weight.movedim(in_dims[1], 0)
        b = None if bias is None else bias.expand(count, -1) if in_dims[2] is None else bias.movedim(in_dims[2], 0)
        if in_dims[0] is None:
            out = F.linear(x, w.flatten(0, 1), None if b is None else b.flatten())
            return out.unflatten(-1, (count, -1)), out.ndim - 1
        x = x.movedim(in_dims[0], 0)
        rows = x.reshape(count, -1, x.shape[-1])
        out = torch.bmm(rows, w.mT) if b is None else torch.baddbmm(b[:, None], rows, w.mT)
        return out.view(*x.shape[:-1], w.shape[1]), 0


class _Convolution(torch.autograd.Function):
    """A convolution with a vectorisation of its own."""

    @staticmethod
    def forward(func: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return func(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: only the vectorisation is ever differentiated, by its operations."""

    @staticmethod
    def vmap(info: Any, in_dims: Axes, func: Callable[..., Tensor], *inputs: Any) -> tuple[Tensor, int]:
        """Apply all models as one grouped convolution, or one model at a time."""
        tensors, axes, geometry = inputs[:3], in_dims[1:4], inputs[3:]
        columns = [_per_model(t, a, info.batch_size) for t, a in zip(tensors, axes, strict=True)]
        models = list(zip(*columns, strict=True))
        x, weight, _ = models[0]
        work = x.numel() // x.shape[-weight.ndim + 1] * weight.numel()
        if x.device.type == "cpu" and work > LARGE:
            return torch.stack([func(*own, *geometry) for own in models]), 0
        return torch.func.vmap(lambda *own: func(*own, *geometry), in_dims=axes)(*tensors), 0


def _per_model(tensor: Tensor | None, axis: int | None, count: int) -> list[Any]:
    return [tensor] * count if tensor is None or axis is None else list(tensor.unbind(axis))


def _linear(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _apply_linear(*args, **kwargs)


def _apply_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _Linear.apply(input, weight, bias)


def _convolution(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _apply_convolution(func, *args, **kwargs)


def _apply_convolution(
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    return _Convolution.apply(func, input, weight, bias, stride, padding, dilation, groups)


VMAP_LAYERS: Mapping[Callable[..., Any], Handler] = {
    F.linear: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
}
"""Handlers for an `Interceptor` inside ``torch.func.vmap``."""
