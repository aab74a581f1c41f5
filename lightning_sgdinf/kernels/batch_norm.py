r"""Training-mode batch normalisation with its batch statistics, differentiable twice in closed form.

torch's own second derivative is put together from some thirty elementary operations and costs more than a convolution.
With :math:`\hat x = (x - \mu)\,r,\; r = (v + \epsilon)^{-1/2}` over the ``n`` values of a channel and
:math:`y = \gamma \hat x + \beta`, a gradient ``g`` of ``y`` becomes :math:`\gamma r\,(g - \bar g - \hat x\,c)`,
:math:`c = \overline{g \hat x}`, in ``x``, and :math:`n c,\; n \bar g` in :math:`\gamma, \beta`. An adjoint
:math:`(A, a, b)` of these three, with :math:`d = \overline{A \hat x}` and
:math:`S = n(\overline{A g} - \bar A \bar g - c d)`, gives

.. math::
    g &\mathrel{+}= \gamma r\,(A - \bar A - \hat x d) + a \hat x + b, \qquad \gamma \mathrel{+}= r S, \\
    x &\mathrel{+}= r\,(h - \bar h - \hat x\,\overline{h \hat x}) - \gamma r^2 S \hat x / n, \qquad
        h = a g - \gamma r\,(g d + A c).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_sgdinf.kernels.channels_last import Twin

_backward = torch.ops.aten.native_batch_norm_backward.default


class Normalised(NamedTuple):
    """Results of a layer.

    Attributes:
        out: As training computed it, to the bit.
        mean: Mean of the batch, per channel; for its derivative, not its value.
        var: Unbiased variance of the batch, per channel; the same.
    """

    out: Tensor
    mean: Tensor
    var: Tensor


def fits(x: Tensor, running_mean: Tensor) -> bool:
    """Return true if `normalise` does what training did: the CPU's kernel without mixed precision."""
    return x.device.type == "cpu" and x.dtype == running_mean.dtype and not torch.is_autocast_enabled("cpu")


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
    twin: Twin,
) -> Normalised:
    """Normalise a batch ``[B, C, ...]`` and move the running statistics.

    Args:
        x: The batch.
        weight: ``[C]`` or none.
        bias: ``[C]`` or none.
        running: Running mean and variance, ``[C]``; moved in place.
        momentum: Weight of the batch's statistics.
        eps: Added to the variance.
        twin: Of the batch.
    """
    return Normalised(*_BatchNorm.apply(x, weight, bias, running, momentum, eps, twin))


class _Layer(NamedTuple):
    """Everything that both derivatives need besides the batch."""

    twin: Twin
    running: tuple[Tensor, Tensor]
    mean: Tensor
    invstd: Tensor
    eps: float


class _BatchNorm(torch.autograd.Function):
    """The layer and its batch statistics; its backward is `_BatchNormBackward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
        twin: Twin,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, invstd = torch.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(x, weight)
        ctx.layer = _Layer(twin, running, mean, invstd, eps)
        ctx.set_materialize_grads(False)
        n = x.numel() // x.shape[1]
        return out, mean.clone(), (invstd.pow(-2) - eps) * (n / max(n - 1, 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_mean: Tensor | None, of_var: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        layer: _Layer = ctx.layer
        mask = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() and grad is not None:
            return (*_BatchNormBackward.apply(grad, x, weight, layer, mask), None, None, None, None)
        grads: list[Tensor | None] = [None, None, None]
        if grad is not None:
            grads = _first(layer.twin.like(grad), layer.twin.get(), weight, layer, mask)
        if mask[0] and (of_mean is not None or of_var is not None):
            of_x = _of_statistics(layer, of_mean, of_var)
            grads[0] = of_x if grads[0] is None else grads[0] + of_x
        return (*grads, None, None, None, None)


class _BatchNormBackward(torch.autograd.Function):
    """Gradients of the layer in input, weight and bias, where the mask asks for them."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, layer: _Layer, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.grad = layer, Twin(grad)
        ctx.set_materialize_grads(False)
        return tuple(_first(grad, x, weight, layer, mask))

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_w: Tensor | None, of_bias: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        layer: _Layer = ctx.layer
        x, grad = layer.twin.get(), ctx.grad.get()
        adjoint = (of_x if of_x is None else layer.twin.like(of_x), of_w, of_bias)
        return (*_second(layer, x, grad, weight, adjoint), None, None)


def _first(
    grad: Tensor, x: Tensor, weight: Tensor | None, layer: _Layer, mask: tuple[bool, bool, bool]
) -> list[Tensor | None]:
    """Return the gradients in batch, weight and bias that the mask asks for, by the kernel that training calls."""
    grads = _backward(grad, x, weight, *layer.running, layer.mean, layer.invstd, True, layer.eps, list(mask))
    return [g if wanted else None for g, wanted in zip(grads, mask, strict=True)]


def _of_statistics(layer: _Layer, of_mean: Tensor | None, of_var: Tensor | None) -> Tensor:
    """Return the derivative of the batch statistics in the batch.

    Mean: ``1 / n``; unbiased variance: ``2 (x - mean) / (n - 1)``. Both together are one multiply-add over the batch.
    """
    x = layer.twin.get()
    rows = _rows(x)
    n = len(rows)
    slope = torch.zeros_like(layer.mean) if of_var is None else of_var * (2 / max(n - 1, 1))
    offset = -slope * layer.mean if of_mean is None else of_mean / n - slope * layer.mean
    return _images(torch.addcmul(offset, rows, slope), x)


def _second(
    layer: _Layer, x: Tensor, grad: Tensor, weight: Tensor | None, adjoint: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the adjoints of gradient, batch and weight; the letters are the module's, ``upper`` is its ``A``.

    A layer costs memory traffic rather than arithmetic: everything per channel is collected into coefficients ``[C]``
    first, and whole batches are then read in as few multiply-adds as there are.
    """
    r = layer.invstd
    g, normal = _rows(grad), (_rows(x) - layer.mean) * r
    n = len(g)
    gamma_r = r if weight is None else weight * r
    a = torch.zeros_like(r) if adjoint[1] is None else adjoint[1]
    b = torch.zeros_like(r) if adjoint[2] is None else adjoint[2]
    g_mean, c = g.mean(0), (g * normal).mean(0)
    if adjoint[0] is None:  # A = 0, so S = d = 0: only the weight and the bias were asked about
        upper = torch.zeros_like(r)
        of_g = torch.addcmul(b, normal, a)
        of_x = r * (a * g - a * g_mean - normal * (a * c))
        return _images(of_g, grad), _images(of_x, x), None if weight is None else upper
    upper = _rows(adjoint[0])
    upper_mean, d = upper.mean(0), (upper * normal).mean(0)
    s = (upper * g).mean(0) - upper_mean * g_mean - c * d  # S / n
    # gamma r (A - mean A - xhat d) + a xhat + b, sorted by xhat and A
    of_g = torch.addcmul(b - gamma_r * upper_mean, normal, a - gamma_r * d).addcmul_(upper, gamma_r)
    # h = a g - gamma r (g d + A c): its mean, and mean(h xhat) = a c - 2 gamma r c d since mean(A xhat) = d
    of_normal = a * c - 2 * gamma_r * c * d
    h_mean = a * g_mean - gamma_r * (g_mean * d + upper_mean * c)
    # r (h - mean h - xhat mean(h xhat)) - gamma r^2 xhat S / n, sorted by xhat, g and A
    of_x = torch.addcmul(-r * h_mean, normal, -r * of_normal - gamma_r * r * s)
    of_x = of_x.addcmul_(g, r * (a - gamma_r * d)).addcmul_(upper, -r * gamma_r * c)
    return _images(of_g, grad), _images(of_x, x), None if weight is None else r * s * n


def _rows(x: Tensor) -> Tensor:
    """Return a batch ``[B, C, ...]`` as ``[n, C]``; nothing is copied if it is channels-last."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows ``[n, C]`` as a batch of the shape of another."""
    shape = like.movedim(1, -1).shape
    return rows.view(shape).movedim(-1, 1)
