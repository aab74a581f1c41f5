"""ReLU of images, whose second derivative keeps the channels-last order of its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.kernels.channels_last import Twin, Twins, pays
from lightning_sgdinf.kernels.intercept import Handler

_backward = torch.ops.aten.threshold_backward.default


class _Relu(torch.autograd.Function):
    """ReLU; its backward is `_ReluBackward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, twin: Twin) -> Tensor:
        out = torch.relu(x)
        twin.set(out)
        ctx.twin = twin
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (out,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _ReluBackward.apply(grad, out, ctx.twin), None
        return _backward(ctx.twin.like(grad), ctx.twin.get(), 0), None


class _ReluBackward(torch.autograd.Function):
    """Gradients where the output was positive; linear in them, and flat in the output."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, out: Tensor, twin: Twin) -> Tensor:
        ctx.twin = twin
        return _backward(grad, out, 0)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return _backward(ctx.twin.like(of_x), ctx.twin.get(), 0), None, None


def handlers(twins: Twins) -> Mapping[Callable[..., Any], Handler]:
    """Return handlers for an `Interceptor` during one pass."""

    def handle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs.get("inplace") or not pays(args[0]):
            return func(*args, **kwargs)
        twin = Twin()
        return twins.note(_Relu.apply(args[0], twin), twin)

    return dict.fromkeys((F.relu, torch.relu, Tensor.relu), handle)
