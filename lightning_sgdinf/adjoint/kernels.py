r"""Convolution and pooling whose second derivative costs no more than it has to.

Values and first derivatives come from the very kernels that training calls, so they keep every bit. Two things differ.
torch's second derivative of a convolution always computes the part for the layer's input, and slowly; for a first
layer, whose input is data, nobody asks for it, and it would be a fifth of a replayed step. And torch's max pooling on
the CPU is several times faster in channels-last order, which finds the same maxima.

With :math:`y = x * w` and first derivatives :math:`\bar x = \bar y *^T w,\; \bar w = x \star \bar y`, an adjoint
:math:`(X, W)` of :math:`(\bar x, \bar w)` gives

.. math:: \bar y \mathrel{+}= X * w + x * W, \qquad x \mathrel{+}= \bar y *^T W, \qquad w \mathrel{+}= X \star \bar y.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.adjoint.intercept import Handler

_backward = torch.ops.aten.convolution_backward.default

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation, groups."""


def _convolve(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, w, None, stride, padding, dilation, False, (0,) * len(stride), groups)


def _differentiate(grad: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]) -> Any:
    stride, padding, dilation, groups = geometry
    sizes = [w.shape[0]] if mask[2] else None
    return _backward(grad, x, w, sizes, stride, padding, dilation, False, [0] * len(stride), groups, list(mask))


class _Convolution(torch.autograd.Function):
    """A convolution; its backward is `_ConvolutionBackward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        stride, padding, dilation, groups = geometry
        return torch.convolution(x, w, bias, stride, padding, dilation, False, (0,) * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            return (*_ConvolutionBackward.apply(grad, x, w, ctx.geometry, mask), None)
        return (*_differentiate(grad, x, w, ctx.geometry, mask), None)


class _ConvolutionBackward(torch.autograd.Function):
    """Gradients of a convolution in input, weight and bias, where the mask asks for them."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, x, w)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return tuple(
            g if wanted else None for g, wanted in zip(_differentiate(grad, x, w, geometry, mask), mask, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_w: Tensor | None, of_bias: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        grad, x, w = ctx.saved_tensors
        wants_grad, wants_x, wants_w = ctx.needs_input_grad[:3]
        geometry: Geometry = ctx.geometry
        found: list[Tensor | None] = [None, None, None]
        if wants_grad:
            parts = [_convolve(a, b, geometry) for a, b in ((of_x, w), (x, of_w)) if a is not None and b is not None]
            if of_bias is not None:
                parts.append(of_bias.view(-1, *[1] * (grad.ndim - 2)).expand_as(grad))
            found[0] = sum(parts[1:], parts[0]) if parts else None
        if wants_x and of_w is not None:
            found[1] = _differentiate(grad, x, of_w, geometry, (True, False, False))[0]
        if wants_w and of_x is not None:
            found[2] = _differentiate(grad, of_x, w, geometry, (False, True, False))[1]
        return (*found, None, None)


class _MaxPool2d(torch.autograd.Function):
    """Max pooling, its maxima found in channels-last order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: tuple[Any, ...]) -> Tensor:
        value, indices = torch.ops.aten.max_pool2d_with_indices(x.contiguous(memory_format=torch.channels_last), *how)
        ctx.save_for_backward(x, indices.contiguous())
        ctx.how = how
        return value.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, indices = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *ctx.how, indices), None


def _handle_convolution(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _convolution(func, *args, **kwargs)


def _convolution(
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    axes = weight.ndim - 2
    if isinstance(padding, str) or input.ndim != weight.ndim or torch.is_autocast_enabled(input.device.type):
        return func(input, weight, bias, stride, padding, dilation, groups)
    return _Convolution.apply(
        input, weight, bias, (_each(stride, axes), _each(padding, axes), _each(dilation, axes), groups)
    )


def _handle_pooling(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _max_pool2d(func, *args, **kwargs)


def _max_pool2d(
    func: Callable[..., Any],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or not _fits(input):
        return func(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    kernel = _each(kernel_size, 2)
    how = (kernel, _each(stride, 2) if stride else kernel, _each(padding, 2), _each(dilation, 2), ceil_mode)
    return _MaxPool2d.apply(input, how)


def _fits(x: Tensor) -> bool:
    """Whether torch would take its slow way."""
    return x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous() and x.requires_grad


def _each(value: Any, axes: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * axes if len(given) == 1 else given


KERNELS: Mapping[Callable[..., Any], Handler] = {
    torch.conv1d: _handle_convolution,
    torch.conv2d: _handle_convolution,
    torch.conv3d: _handle_convolution,
    F.max_pool2d: _handle_pooling,
}
"""Handlers for an `Interceptor`."""
