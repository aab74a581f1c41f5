"""Loss functions by their formulas, where torch has no second derivative of its own: alignments and margins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.kernels.ctc import ctc_loss
from lightning_sgdinf.kernels.intercept import Handler


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Compute ``F.multi_margin_loss``, :math:`\frac{1}{C} \sum_{j \ne y} w_y \max(0, m - x_y + x_j)^p`."""
    own = target.unsqueeze(-1)
    short = F.relu(margin - input.gather(-1, own) + input)
    short = short.square() if p == 2 else short
    others = torch.ones_like(input).scatter(-1, own, 0)
    losses = (short * others).sum(-1) / input.shape[-1]
    return _reduced(losses if weight is None else losses * weight[target], size_average, reduce, reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Compute ``F.multilabel_margin_loss``, :math:`\frac{1}{C} \sum_{y, j \notin Y} \max(0, 1 - x_y + x_j)`, with the
    labels up to the first -1."""
    listed = (target < 0).cumsum(-1) == 0
    labels = target.clamp_min(0)
    others = torch.zeros_like(target).scatter_add(-1, labels, listed.long()) == 0
    short = F.relu(1 - input.gather(-1, labels).unsqueeze(-1) + input.unsqueeze(-2))
    losses = (short * (listed.unsqueeze(-1) & others.unsqueeze(-2))).sum((-1, -2)) / input.shape[-1]
    return _reduced(losses, size_average, reduce, reduction)


def _reduced(losses: Tensor, size_average: bool | None, reduce: bool | None, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


_FORMULAS: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.ctc_loss: ctc_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
}


def formula_of(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same arguments that can be differentiated twice: a formula, or the loss itself."""
    return _FORMULAS.get(loss, loss)


def _handle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return formula_of(func)(*args, **kwargs)


LOSS_FORMULAS: Mapping[Callable[..., Any], Handler] = dict.fromkeys(_FORMULAS, _handle)
"""Handlers for an `Interceptor`, where no weights enter these losses."""
