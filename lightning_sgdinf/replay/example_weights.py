r"""Example weights that enter the gradient of an unmodified loss.

With weights ``w`` the batch gradient is to be :math:`g(w) = \sum_i w_i \nabla l_i + \nabla r`, where :math:`l_i` is
what example ``i`` adds to the loss (its share of the mean included) and ``r`` is the rest (penalties). The weights are
put in where the loss is taken: the input of a loss function of ``torch.nn.functional`` passes through an identity whose
backward multiplies row ``i`` by ``w_i``. So the value of the loss keeps every bit, and reductions, class weights, label
smoothing, focal-style code after an unreduced loss and sums of several losses are all handled by the chain rule.

Differentiating :math:`\langle g(w), v\rangle` once gives both :math:`Hv` (in the parameters) and every slope
:math:`\langle \nabla l_i, v\rangle` (in the weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_sgdinf.kernels.intercept import Handler

LOSSES: tuple[Callable[..., Any], ...] = (
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.kl_div,
    F.poisson_nll_loss,
    F.gaussian_nll_loss,
    F.soft_margin_loss,
    F.multilabel_soft_margin_loss,
    F.multilabel_margin_loss,
    F.multi_margin_loss,
    F.hinge_embedding_loss,
    F.margin_ranking_loss,
    F.cosine_embedding_loss,
    F.triplet_margin_loss,
    F.triplet_margin_with_distance_loss,
)
"""Functions whose inputs are tapped; the ``nn.*Loss`` modules call these."""

_INPUTS = frozenset({"input", "target", "var", "input1", "input2", "x1", "x2", "anchor", "positive", "negative"})


class _WeightRows(torch.autograd.Function):
    """Identity forward; backward multiplies the rows of the gradient by their example's weight."""

    @staticmethod
    def forward(x: Tensor, weights: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return _weighted(grad, weights.to(grad.dtype), 0), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None], x: Tensor, weights: Tensor
    ) -> tuple[Tensor, int | None]:
        """Many models at once, each with weights of its own."""
        if in_dims[0] is None:  # the same for all models, such as a target, so nothing that is trained lies behind it
            return x.view_as(x), None
        own = weights.expand(info.batch_size, -1) if in_dims[1] is None else weights.movedim(in_dims[1], 0)
        return _WeightStackedRows.apply(x.movedim(in_dims[0], 0), own), 0


class _WeightStackedRows(torch.autograd.Function):
    """As `_WeightRows`, with the models in the first dimension: rows ``[L, B, ...]``, weights ``[L, B]``."""

    @staticmethod
    def forward(x: Tensor, weights: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return _weighted(grad, weights.to(grad.dtype), 1), None


def _weighted(grad: Tensor, weights: Tensor, axis: int) -> Tensor:
    """A gradient whose rows lie along ``axis``, times the weights of the examples they belong to."""
    lead, count = grad.shape[:axis], weights.shape[axis]
    if grad.ndim > axis and grad.shape[axis] == count:
        return grad * weights.view(*weights.shape, *[1] * (grad.ndim - weights.ndim))
    # A flattened sequence: rows of one example lie together.
    rows = grad.reshape(*lead, count, -1, *grad.shape[axis + 1 :])
    return (rows * weights.view(*weights.shape, *[1] * (rows.ndim - weights.ndim))).reshape(grad.shape)


class LossTap:
    """Weights the gradient at the input of every loss function called while its handlers are in force.

    Args:
        weights: Example weights, ``[B]``.
        stacked: Inside ``torch.func.vmap``, where tensors do not say whether they carry a gradient.

    Attributes:
        calls: Names of the loss functions that were tapped so far.
    """

    def __init__(self, weights: Tensor, *, stacked: bool = False) -> None:
        self.weights = weights
        self.stacked = stacked
        self.calls: list[str] = []

    def handlers(self) -> Mapping[Callable[..., Any], Handler]:
        """What an `Interceptor` needs."""
        return dict.fromkeys(LOSSES, self._handle)

    def apply(self, value: Any) -> Any:
        """The same value, tapped if it is a tensor with one or more rows per example that carries a gradient."""
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        if not (value.is_floating_point() if self.stacked else value.requires_grad):
            return value
        if value.shape[0] == 0 or value.shape[0] % len(self.weights):
            return value
        return _WeightRows.apply(value, self.weights)

    def _handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tapped = [self.apply(a) if i < 3 else a for i, a in enumerate(args)]
        named = {k: self.apply(v) if k in _INPUTS else v for k, v in kwargs.items()}
        if any(a is not b for a, b in zip(args, tapped, strict=True)) or any(
            named[k] is not v for k, v in kwargs.items()
        ):
            self.calls.append(func.__name__)
        return func(*tapped, **named)


@contextmanager
def tapped_output(part: nn.Module, tap: LossTap) -> Iterator[None]:
    """Tap the output of a sub-module instead, for losses that are written by hand.

    Right whenever each output row feeds only its own example's loss.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        del module, inputs
        tap.calls.append("output")
        return tree_map_only(Tensor, tap.apply, output)

    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
