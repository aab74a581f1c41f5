"""Lookups, distances, a ramp, by formulas that can be differentiated twice where torch's operations cannot.

Bags of embeddings, gradients scaled by the frequency of an index, sparse gradients, pairwise distances, and the hard
sigmoid: values and first derivatives of the formulas are those of torch's operations to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.kernels.held import Phase, hold
from lightning_sgdinf.kernels.intercept import Handler
from lightning_sgdinf.kernels.sparse_rows import SparseRows


class RenormalisedEmbedding(Exception):
    """An embedding with ``max_norm`` changes its weights in the forward pass."""


def lookup_handlers(phase: Phase, sparse_rows: SparseRows) -> Mapping[Callable[..., Any], Handler]:
    """Return handlers for an `Interceptor` during one pass.

    Args:
        phase: Tells training's own gradient from derivatives of it.
        sparse_rows: Is told of the rows that lookups with sparse gradients take.
    """

    def look_up(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return _embedding(func, phase, sparse_rows, *args, **kwargs)

    def bag(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return _embedding_bag(phase, sparse_rows, *args, **kwargs)

    def distances(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return _cdist(func, *args, **kwargs)

    return {
        F.embedding: look_up,
        F.embedding_bag: bag,
        torch.cdist: distances,
        torch.pdist: _pdist,
        F.hardsigmoid: _hardsigmoid,
    }


def _embedding(
    func: Callable[..., Any],
    phase: Phase,
    sparse_rows: SparseRows,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None:
        raise RenormalisedEmbedding
    rows = func(input, weight, padding_idx)
    if sparse:
        trained = input if padding_idx is None else input[input != padding_idx % len(weight)]
        sparse_rows.watch(rows, weight, trained, phase)
    return _by_frequency(rows, input, phase) if scale_grad_by_freq else rows


def _by_frequency(rows: Tensor, indices: Tensor, phase: Phase) -> Tensor:
    """Let training's gradient of looked-up rows be divided by how often each index occurs, and no other derivative."""
    _, place, counts = indices.unique(return_inverse=True, return_counts=True)
    share = counts[place].to(rows.dtype).reciprocal()[..., None]
    return rows * share + hold(rows * (1 - share), phase)


def _embedding_bag(
    phase: Phase,
    sparse_rows: SparseRows,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if max_norm is not None:
        raise RenormalisedEmbedding
    if input.ndim == 2:
        count, bags = len(input), torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.flatten()
    else:
        assert offsets is not None
        count = len(offsets) - include_last_offset
        ends = torch.cat([offsets[1:count], offsets.new_tensor([len(input)])])
        bags = torch.arange(count, device=input.device).repeat_interleave(ends - offsets[:count])
    flat = input.flatten()
    if padding_idx is not None:
        kept = flat != padding_idx % len(weight)
        flat, bags = flat[kept], bags[kept]
        per_sample_weights = None if per_sample_weights is None else per_sample_weights[kept]
    rows = F.embedding(flat, weight)
    if sparse:
        sparse_rows.watch(rows, weight, flat, phase)
    if scale_grad_by_freq:
        rows = _by_frequency(rows, flat, phase)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    out = rows.new_zeros(count, weight.shape[1])
    if mode == "max":
        return _largest(rows, bags, out)
    out = out.index_add(0, bags, rows)
    return out if mode == "sum" else out / bags.bincount(minlength=count).clamp_min(1)[:, None]


def _largest(rows: Tensor, bags: Tensor, out: Tensor) -> Tensor:
    """Return the largest of each bag, from its first row that has it, as torch does; zero for an empty bag."""
    where = bags[:, None].expand_as(rows)
    with torch.no_grad():
        top = torch.full_like(out, -torch.inf).scatter_reduce(0, where, rows.detach(), "amax")
        place = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
        place = torch.where(rows.detach() == top.gather(0, where), place, len(rows))
        first = torch.full_like(out, len(rows), dtype=torch.long).scatter_reduce(0, where, place, "amin")
        empty = first == len(rows)
    picked = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).gather(0, first)
    return picked.masked_fill(empty, 0)


def _cdist(func: Callable[..., Any], x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _pdist(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    def distances(input: Tensor, p: float = 2.0) -> Tensor:
        first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
        return _length(input[first] - input[second], p)

    return distances(*args, **kwargs)


def _length(apart: Tensor, p: float) -> Tensor:
    if p != 2:
        return torch.linalg.vector_norm(apart, p, dim=-1)
    squares = apart.square().sum(-1)
    same = squares == 0
    return squares.masked_fill(same, 1).sqrt().masked_fill(same, 0)


def _hardsigmoid(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    def ramp(input: Tensor, inplace: bool = False) -> Tensor:
        out = torch.where(input.abs() < 3, (input + 3) / 6, (input > 0).to(input))
        return input.copy_(out) if inplace else out

    return ramp(*args, **kwargs)
