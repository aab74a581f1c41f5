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
from lightning_sgdinf.kernels.stack import Axes, on_stack

LARGE = 4e6
"""Multiplications per model from which a convolution is done one model at a time on a CPU."""


def _apply_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return on_stack(_linear_of_models, F.linear, input, weight, bias)


def _linear_of_models(
    count: int, axes: Axes, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, int | None]:
    """Apply the layers of all models, in the first dimension of ``[L, ...]``."""
    w = weight.expand(count, -1, -1) if axes[1] is None else weight.movedim(axes[1], 0)
    b = None if bias is None else bias.expand(count, -1) if axes[2] is None else bias.movedim(axes[2], 0)
    if axes[0] is None:
        out = F.linear(x, w.flatten(0, 1), None if b is None else b.flatten())
        return out.unflatten(-1, (count, -1)), out.ndim - 1
    x = x.movedim(axes[0], 0)
    rows = x.reshape(count, -1, x.shape[-1])
    out = torch.bmm(rows, w.mT) if b is None else torch.baddbmm(b[:, None], rows, w.mT)
    return out.view(*x.shape[:-1], w.shape[1]), 0


def _apply_convolution(func: Callable[..., Any], input: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Any:
    work = input.numel() // input.shape[-weight.ndim + 1] * weight.numel()  # of one model
    if input.device.type != "cpu" or work <= LARGE:
        return func(input, weight, *rest, **more)  # a grouped one, by torch's own rule
    bias = rest[0] if rest else more.pop("bias", None)

    def of_models(count: int, axes: Axes, *tensors: Any) -> tuple[Tensor, int | None]:
        columns = [_per_model(t, a, count) for t, a in zip(tensors, axes, strict=True)]
        return torch.stack([func(*own, *rest[1:], **more) for own in zip(*columns, strict=True)]), 0

    return on_stack(of_models, lambda *own: func(*own, *rest[1:], **more), input, weight, bias)


def _per_model(tensor: Tensor | None, axis: int | None, count: int) -> list[Any]:
    return [tensor] * count if tensor is None or axis is None else list(tensor.unbind(axis))


def _linear(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _apply_linear(*args, **kwargs)


def _convolution(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _apply_convolution(func, *args, **kwargs)


VMAP_LAYERS: Mapping[Callable[..., Any], Handler] = {
    F.linear: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
}
"""Handlers for an `Interceptor` inside ``torch.func.vmap``."""
