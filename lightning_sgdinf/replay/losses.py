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
    F.ctc_loss,
)
"""Functions whose inputs are tapped; the ``nn.*Loss`` modules call these."""

INPUTS = frozenset(
    {"input", "log_probs", "target", "var", "input1", "input2", "x1", "x2", "anchor", "positive", "negative"}
)


def unreduced(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the value of a call of a loss function before it is reduced to a mean or a sum."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.arguments.pop("size_average", None)
    bound.arguments.pop("reduce", None)
    bound.arguments["reduction"] = "none"
    return func(*bound.args, **bound.kwargs)


def parts_of_value(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, bool]:
    """Return what each row adds to the value of a call, and true if the call adds them up itself.

    Args:
        func: One of `LOSSES`.
        args: Of the call.
        kwargs: Of the call.
    """
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    with torch.no_grad():
        rows = unreduced(func, args, kwargs)
        if given["reduction"] == "none":
            return rows, False
        if given["reduction"] == "sum":
            return rows, True
        if given["reduction"] == "batchmean":
            return rows / len(given["input"]), True
        if func is F.ctc_loss:  # a mean over examples of means over labels
            lengths = torch.as_tensor(given["target_lengths"], device=rows.device)
            return rows / lengths.clamp_min(1).expand(rows.shape) / max(rows.numel(), 1), True
        shares = shares_of_mean(func, args, kwargs)
        return rows / torch.broadcast_to(torch.ones(()) if shares is None else shares, rows.shape).sum(), True


def shares_of_mean(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    r"""Return what each row counts for in what a loss divides by, in the shape of the rows or a single number.

    A mean is :math:`\sum_r \nu_r l_r / \sum_r \nu_r`; :math:`\nu` is the weight of the row's class, and 0 where it is
    ignored.

    Args:
        func: One of `LOSSES`.
        args: Of the call.
        kwargs: Of the call.

    Returns:
        :math:`\nu`; ``None`` if the call itself divides by nothing that is known.
    """
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    deprecated = given.get("size_average") is not None or given.get("reduce") is not None
    if deprecated or given["reduction"] not in ("mean", "batchmean"):
        return None
    target = given.get("target")
    if func not in OF_CLASSES or target is None or target.is_floating_point():
        return torch.ones(())
    counted = target != given["ignore_index"]
    weight = given.get("weight")
    if weight is None:
        return counted.to(given["input"].dtype)
    return counted * weight[torch.where(counted, target, torch.zeros_like(target))]


def rows_shape(func: Callable[..., Any], inputs: Sequence[Any]) -> torch.Size:
    """Return the shape of a loss before it is reduced: one element per row.

    Args:
        func: One of `LOSSES`.
        inputs: Its tensors, the input first.
    """
    first = inputs[0].shape
    if func in OF_CLASSES:
        return torch.Size([*first[:1], *first[2:]]) if len(first) > 1 else torch.Size()
    if func is F.ctc_loss:
        return first[1:2] if len(first) == 3 else torch.Size()
    shapes = [v.shape for v in inputs if isinstance(v, Tensor)]
    if func in OF_VECTORS:
        return torch.broadcast_shapes(*(s[:-1] for s in shapes if len(s) == len(first)))
    return first if func is F.gaussian_nll_loss else torch.broadcast_shapes(*shapes)
