"""The loss functions of ``torch.nn.functional`` and their rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OF_CLASSES = (F.cross_entropy, F.nll_loss)
"""Losses of inputs ``[N, C, ...]``, one row for each ``[N, ...]``."""

OF_VECTORS = (
    F.multilabel_soft_margin_loss,
    F.multilabel_margin_loss,
    F.multi_margin_loss,
    F.cosine_embedding_loss,
    F.triplet_margin_loss,
    F.triplet_margin_with_distance_loss,
)
"""Losses of inputs ``[..., D]``, one row for each ``[...]``."""

LOSSES: tuple[Callable[..., Any], ...] = (
    *OF_CLASSES,
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
    F.hinge_embedding_loss,
    F.margin_ranking_loss,
    *OF_VECTORS,
)
"""Functions whose inputs are tapped; the ``nn.*Loss`` modules call these."""

INPUTS = frozenset({"input", "target", "var", "input1", "input2", "x1", "x2", "anchor", "positive", "negative"})


def unreduced(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the value of a call of a loss function before it is reduced to a mean or a sum."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.arguments.pop("size_average", None)
    bound.arguments.pop("reduce", None)
    bound.arguments["reduction"] = "none"
    return func(*bound.args, **bound.kwargs)


def rows_shape(func: Callable[..., Any], inputs: Sequence[Any]) -> torch.Size:
    """Return the shape of a loss before it is reduced: one element per row.

    Args:
        func: One of `LOSSES`.
        inputs: Its tensors, the input first.
    """
    first = inputs[0].shape
    if func in OF_CLASSES:
        return torch.Size([*first[:1], *first[2:]]) if len(first) > 1 else torch.Size()
    shapes = [v.shape for v in inputs if isinstance(v, Tensor)]
    if func in OF_VECTORS:
        return torch.broadcast_shapes(*(s[:-1] for s in shapes if len(s) == len(first)))
    return first if func is F.gaussian_nll_loss else torch.broadcast_shapes(*shapes)
