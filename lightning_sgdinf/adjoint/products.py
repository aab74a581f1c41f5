"""Second derivatives of one traced pass: slopes, Hessian-vector products and what flows into running statistics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.running_statistics import RunningStatistics

STRETCH = 32
"""How many queries are differentiated together at most: activations take that many times the memory."""


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """One pass with its gradient, which still has its graph.

    Attributes:
        loss: What was differentiated.
        weights: Example weights that entered, ``[B]``.
        statistics: Running statistics that the pass moved or read.
        grads: Gradient per parameter; ``None`` where there is none.
    """

    loss: Tensor
    weights: Tensor
    statistics: RunningStatistics | None
    grads: Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class Products:
    r"""What comes of differentiating :math:`\langle g(w, \theta), push\rangle` and the batch statistics.

    Attributes:
        slopes: In the weights, ``[Q, B]``.
        hessian: In the parameters, ``[Q, *shape]`` each; empty without curvature.
        statistics: In running statistics that the pass read, by buffer name, ``[Q, *shape]``.
        buffers: The buffers' adjoints as they were given, decayed where the pass moved the buffer.
    """

    slopes: Tensor
    hessian: list[Tensor]
    statistics: dict[str, Tensor]
    buffers: dict[str, Tensor]


def differentiate(
    first: FirstOrder,
    parameters: Sequence[Tensor],
    pushes: Sequence[Tensor],
    buffers: Mapping[str, Tensor],
    *,
    curvature: bool = True,
    together: bool = False,
) -> Products:
    """Differentiate a pass once more.

    Args:
        first: The pass; its graph is freed, unless ``together``.
        parameters: What it was traced with.
        pushes: Adjoint of the gradient, ``[Q, *shape]`` per parameter.
        buffers: Adjoint of the buffers after the pass, ``[Q, *shape]`` by name.
        curvature: Differentiate in parameters and buffers, not in weights alone.
        together: All queries in one vectorised pass, not one after another.
    """
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []
    for grad, push in zip(first.grads, pushes, strict=True):
        if grad is not None and grad.requires_grad:
            outputs.append(grad)
            cotangents.append(push.to(grad.dtype))
    decayed = dict(buffers)
    leaves: dict[str, Tensor] = {}
    if first.statistics is not None and curvature:
        leaves = first.statistics.leaves
        # Later layers' updates come first when walking back; a buffer moved twice decays twice.
        for update in reversed(first.statistics.updates):
            if update.name in decayed:
                if update.batch_statistic.requires_grad:
                    outputs.append(update.batch_statistic)
                    cotangents.append(decayed[update.name] * update.momentum)
                decayed[update.name] = decayed[update.name] * (1 - update.momentum)
    wanted = [first.weights, *parameters, *leaves.values()] if curvature else [first.weights]
    rows = _rows_together if together and outputs else _rows
    slopes, *rest = rows(outputs, wanted, cotangents, len(pushes[0]))
    count = len(parameters)
    return Products(slopes, rest[:count], dict(zip(leaves, rest[count:], strict=True)), decayed)


def _rows(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], queries: int) -> list[Tensor]:
    """Vector-Jacobian products for each of ``queries`` rows of the cotangents, stacked: ``[Q, *input.shape]``."""
    if not outputs:
        return [torch.zeros(queries, *i.shape, dtype=i.dtype, device=i.device) for i in inputs]
    rows = [
        torch.autograd.grad(
            outputs, inputs, [c[q] for c in cotangents], allow_unused=True, retain_graph=q < queries - 1
        )
        for q in range(queries)
    ]
    if queries == 1:
        return [torch.zeros_like(i)[None] if x is None else x[None] for i, x in zip(inputs, rows[0], strict=True)]
    return [
        torch.stack([torch.zeros_like(i) if x is None else x for x in column])
        for i, column in zip(inputs, zip(*rows, strict=True), strict=True)
    ]


def _rows_together(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], queries: int) -> list[Tensor]:
    """As `_rows`, vectorised in stretches of queries, which bounds the memory."""

    def pull(*rows: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(outputs, inputs, rows, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(i) if x is None else x for i, x in zip(inputs, found, strict=True)]

    parts = []
    for start in range(0, queries, STRETCH):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an operation is not vectorised only costs time
            parts.append(torch.func.vmap(pull)(*(c[start : start + STRETCH] for c in cotangents)))
    return [torch.cat(column) for column in zip(*parts, strict=True)]
