"""Vector-Jacobian products of many cotangents: one after another, or in one vectorised pass."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.kernels import WAYS_AROUND

_MISSING = re.compile(r"derivative for '?(?:aten::)?_?(\w+?)(?:_backward|_grad)?'? is not implemented")

STRETCH = 32
"""How many rows are pulled back together at most: activations take that many times the memory."""


def pull_rows(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    rows: int,
    *,
    keep: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """Pull each row of the cotangents back by itself.

    Args:
        outputs: Tensors with a graph; may be none.
        inputs: What to differentiate them in.
        cotangents: Per output, ``[rows, *output.shape]``.
        rows: How many there are.
        keep: Keep the graph for another pass.
        create_graph: Keep it, and give the result a graph of its own.

    Returns:
        Per input, ``[rows, *input.shape]``; zero where no output depends on it.

    Raises:
        UnsupportedRunError: Torch has no second derivative of an operation; names it.
    """
    if not outputs:
        return [torch.zeros(rows, *i.shape, dtype=i.dtype, device=i.device) for i in inputs]
    try:
        pulled = [
            _pull(outputs, inputs, [c[q] for c in cotangents], keep or create_graph or q < rows - 1, create_graph)
            for q in range(rows)
        ]
    except RuntimeError as error:
        if (missing := _MISSING.search(str(error))) is None:
            raise
        raise UnsupportedRunError(
            f"torch has no second derivative of {missing[1]}, which the training step calls. {WAYS_AROUND}."
        ) from error
    if rows == 1:
        return [x[None] for x in pulled[0]]
    return [torch.stack(column) for column in zip(*pulled, strict=True)]


def pull_rows_together(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    rows: int,
    *,
    create_graph: bool = False,
    stretch: int = STRETCH,
) -> list[Tensor]:
    """Pull rows back as `pull_rows`, vectorised in stretches, which bounds the memory. The graph is kept.

    Args:
        outputs: Tensors with a graph, at least one.
        inputs: What to differentiate them in.
        cotangents: Per output, ``[rows, *output.shape]``.
        rows: How many there are.
        create_graph: Give the result a graph of its own.
        stretch: Rows at a time.

    Raises:
        RuntimeError: An operation cannot be vectorised, such as an ``autograd.Function`` of the user's.
    """

    def pull(*row: Tensor) -> list[Tensor]:
        return _pull(outputs, inputs, row, True, create_graph)

    parts = []
    for start in range(0, rows, stretch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an operation is not vectorised only costs time
            parts.append(torch.func.vmap(pull)(*(c[start : start + stretch] for c in cotangents)))
    return [torch.cat(column) for column in zip(*parts, strict=True)] if len(parts) > 1 else list(parts[0])


def _pull(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], row: Sequence[Tensor], keep: bool, create_graph: bool
) -> list[Tensor]:
    """Pull one row of cotangents back; zero where no output depends on an input."""
    grads = torch.autograd.grad(outputs, inputs, row, allow_unused=True, retain_graph=keep, create_graph=create_graph)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]
