r"""Convolution whose second derivative costs no more than it has to.

Values and first derivatives come from the very kernels that training calls, so they keep every bit. torch's second
derivative always computes the part for the layer's input, and slowly; for a first layer, whose input is data, nobody
asks for it, and it would be a fifth of a replayed step. Here it is left out, and the rest is done channels-last.

With :math:`y = x * w` and first derivatives :math:`\bar x = \bar y *^T w,\; \bar w = x \star \bar y`, an adjoint
:math:`(X, W)` of :math:`(\bar x, \bar w)` gives

.. math:: \bar y \mathrel{+}= X * w + x * W, \qquad x \mathrel{+}= \bar y *^T W, \qquad w \mathrel{+}= X \star \bar y.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.kernels.channels_last import Twin, Twins
from lightning_sgdinf.kernels.intercept import Handler

_backward = torch.ops.aten.convolution_backward.default

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation, groups."""


def each(value: Any, axes: int) -> tuple[int, ...]:
    """Return one number per axis, as torch's modules take a single one for all."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * axes if len(given) == 1 else given


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, w, bias, stride, padding, dilation, False, (0,) * len(stride), groups)


def _differentiate(grad: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]) -> Any:
    stride, padding, dilation, groups = geometry
    sizes = [w.shape[0]] if mask[2] else None
    return _backward(grad, x, w, sizes, stride, padding, dilation, False, [0] * len(stride), groups, list(mask))


class _Convolution(torch.autograd.Function):
    """A convolution; its backward is `_ConvolutionBackward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, twin: Twin, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.twin, ctx.geometry = twin, geometry
        return _convolve(x, w, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            return (*_ConvolutionBackward.apply(grad, x, w, ctx.twin, ctx.geometry, mask), None, None)
        return (*_differentiate(ctx.twin.like(grad), ctx.twin.get(), w, ctx.geometry, mask), None, None)


class _ConvolutionBackward(torch.autograd.Function):
    """Gradients of a convolution in input, weight and bias, where the mask asks for them."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, w: Tensor, twin: Twin, geometry: Geometry, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(w)
        ctx.x, ctx.grad, ctx.geometry = twin, Twin(grad), geometry
        ctx.set_materialize_grads(False)
        return tuple(
            g if wanted else None for g, wanted in zip(_differentiate(grad, x, w, geometry, mask), mask, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_w: Tensor | None, of_bias: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        (w,) = ctx.saved_tensors
        grad, x = ctx.grad.get(), ctx.x.get()
        of_x = None if of_x is None else ctx.x.like(of_x)
        wants_grad, wants_x, wants_w = ctx.needs_input_grad[:3]
        geometry: Geometry = ctx.geometry
        adjoints: list[Tensor | None] = [None, None, None]
        if wants_grad:
            parts = [
                _convolve(a, b, None, geometry) for a, b in ((of_x, w), (x, of_w)) if a is not None and b is not None
            ]
            if of_bias is not None:
                parts.append(of_bias.view(-1, *[1] * (grad.ndim - 2)).expand_as(grad))
            adjoints[0] = sum(parts[1:], parts[0]) if parts else None
        if wants_x and of_w is not None:
            adjoints[1] = _differentiate(grad, x, of_w, geometry, (True, False, False))[0]
        if wants_w and of_x is not None:
            adjoints[2] = _differentiate(grad, of_x, w, geometry, (False, True, False))[1]
        return (*adjoints, None, None, None)


def handlers(twins: Twins) -> Mapping[Callable[..., Any], Handler]:
    """Return handlers for an `Interceptor` during one pass."""

    def handle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _convolution(func, twins, *args, **kwargs)

    return dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), handle)


def _convolution(
    func: Callable[..., Any],
    twins: Twins,
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
    geometry = (each(stride, axes), each(padding, axes), each(dilation, axes), groups)
    return _Convolution.apply(input, weight, bias, twins.of(input), geometry)
