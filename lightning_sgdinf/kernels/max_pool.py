"""Max pooling that looks for its maxima in channels-last order: the same ones, several times faster on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.kernels.channels_last import Twin, Twins, channels_last, pays
from lightning_sgdinf.kernels.convolution import each
from lightning_sgdinf.kernels.intercept import Handler

_backward = torch.ops.aten.max_pool2d_with_indices_backward.default


class _MaxPool2d(torch.autograd.Function):
    """Max pooling; its backward is `_MaxPool2dBackward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of_x: Twin, of_out: Twin, window: tuple[Any, ...]) -> Tensor:
        value, indices = torch.ops.aten.max_pool2d_with_indices(channels_last(of_x.get()), *window)
        ctx.save_for_backward(x, indices)
        ctx.window = window
        out = value.contiguous()
        of_out.set(out, value if of_x.pays else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, indices = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _MaxPool2dBackward.apply(grad, x, indices, ctx.window), None, None, None
        if pays(x):
            shaped = x.new_empty(x.shape).contiguous(memory_format=torch.channels_last)
            return _backward(channels_last(grad), shaped, *ctx.window, indices), None, None, None
        return _backward(grad, x, *ctx.window, indices.contiguous()), None, None, None


class _MaxPool2dBackward(torch.autograd.Function):
    """Gradients put where the maxima were; its derivative picks them up again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, indices: Tensor, window: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(indices)
        return _backward(grad, x, *window, indices.contiguous())

    @staticmethod
    def backward(ctx: Any, of_x: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (indices,) = ctx.saved_tensors
        batch, channels, height, width = indices.shape
        # Channels last: a gather along the middle axis reads whole rows of channels.
        rows = channels_last(of_x).permute(0, 2, 3, 1).reshape(batch, -1, channels)
        picked = rows.gather(1, indices.permute(0, 2, 3, 1).reshape(batch, -1, channels))
        return picked.view(batch, height, width, channels).permute(0, 3, 1, 2), None, None, None


def handlers(twins: Twins) -> Mapping[Callable[..., Any], Handler]:
    """Return handlers for an `Interceptor` during one pass."""

    def handle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _max_pool2d(func, twins, *args, **kwargs)

    return {F.max_pool2d: handle}


def _max_pool2d(
    func: Callable[..., Any],
    twins: Twins,
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
    kernel = each(kernel_size, 2)
    window = (kernel, each(stride, 2) if stride else kernel, each(padding, 2), each(dilation, 2), ceil_mode)
    of_out = Twin()
    return twins.note(_MaxPool2d.apply(input, twins.of(input), of_out, window), of_out)


def _fits(x: Tensor) -> bool:
    """Return true where torch would take its slow way."""
    return x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous() and x.requires_grad
