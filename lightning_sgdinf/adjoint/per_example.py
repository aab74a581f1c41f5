r"""Contributions of an example's own loss term to a step's gradient and to its Hessian-vector product.

With the gradient :math:`g(w, \theta) = \sum_i w_i \nabla l_i + \nabla r` of a traced pass and a row of tangents
:math:`\Delta_j` for example ``j``, differentiating in the weights gives, for the examples of the batch at once,
:math:`\nabla l_j` (as the transpose of :math:`v \mapsto \partial_w \langle g, v\rangle`, which is linear in ``v``) and
:math:`\nabla^2 l_j\,\Delta_j = \partial_\theta\,\partial_{w_j} \langle g, \Delta_j\rangle`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.second_order import FirstOrder
from lightning_sgdinf.adjoint.vjp import pull_rows, pull_rows_together
from lightning_sgdinf.replay import Objective

STRETCH = 256
"""Rows in one vectorised pass: with one state per example in memory, their activations are small beside it."""


def hessian_rows(objective: Objective, first: FirstOrder, rows: Tensor) -> Tensor:
    """Return the Hessian of a pass's loss times each row, ``[K, P]``."""
    outputs, pushes = _outputs(objective, first, rows)
    return objective.vector.join_rows(_pull(objective, outputs, objective.parameters, pushes, len(rows)))


def own_gradients(objective: Objective, first: FirstOrder, positions: Tensor) -> Tensor:
    """Return the gradients of the terms at some positions of the batch, each by itself, ``[J, P]``."""
    outputs, _ = _outputs(objective, first, None)
    dummies = [torch.zeros_like(o, requires_grad=True) for o in outputs]
    (slopes,) = torch.autograd.grad(outputs, [first.weights], dummies, create_graph=True)
    chosen = torch.eye(len(first.weights), dtype=slopes.dtype, device=slopes.device)[positions]
    gradients = iter(_pull(objective, [slopes], dummies, [chosen], len(positions)))
    count = len(positions)
    return objective.vector.join_rows(
        [next(gradients) if _carries(g) else p.new_zeros(count, *p.shape) for g, p in _pairs(objective, first)]
    )


def own_hessian_rows(objective: Objective, first: FirstOrder, positions: Tensor, rows: Tensor) -> Tensor:
    """Return the Hessian of the term at each position times the row that belongs to it, ``[J, P]``."""
    outputs, pushes = _outputs(objective, first, rows)
    count = len(positions)
    (slopes,) = _pull(objective, outputs, [first.weights], pushes, count, create_graph=True)
    own = slopes[torch.arange(count, device=slopes.device), positions]
    if not own.requires_grad:
        return torch.zeros_like(rows)
    unit = torch.eye(count, dtype=own.dtype, device=own.device)
    return objective.vector.join_rows(_pull(objective, [own], objective.parameters, [unit], count))


def _outputs(objective: Objective, first: FirstOrder, rows: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    parts: Sequence[Tensor | None] = [None] * len(first.grads) if rows is None else objective.vector.split(rows)
    pairs = [(g, part) for (g, _), part in zip(_pairs(objective, first), parts, strict=True) if _carries(g)]
    return [g for g, _ in pairs if g is not None], [v for _, v in pairs if v is not None]


def _pairs(objective: Objective, first: FirstOrder) -> list[tuple[Tensor | None, Tensor]]:
    return list(zip(first.grads, objective.parameters, strict=True))


def _carries(grad: Tensor | None) -> bool:
    return grad is not None and grad.requires_grad


def _pull(
    objective: Objective,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    rows: int,
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    if objective.queries_together and outputs:
        try:
            return pull_rows_together(outputs, inputs, cotangents, rows, create_graph=create_graph, stretch=STRETCH)
        except (RuntimeError, NotImplementedError, ValueError):
            objective.queries_together = False  # an operation that cannot be vectorised
    return pull_rows(outputs, inputs, cotangents, rows, keep=True, create_graph=create_graph)
