"""The rows of a parameter that a sparse gradient has; an optimizer for these leaves the others alone, moments included.

While a step is differentiated its lookups have dense gradients, of which torch has second derivatives. Which rows the
sparse one would have is noted as training's gradient passes by: a row with a gradient of zero is one of them, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_sgdinf.kernels.held import Phase


class SparseRows:
    """Rows that the gradients of the step at hand have."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}
        self._noting = False

    @contextmanager
    def noting(self, wanted: bool = True) -> Iterator[None]:
        """Note rows inside, if that is wanted: a gradient of the step is taken, and none for comparison."""
        before, self._noting = self._noting, wanted
        try:
            yield
        finally:
            self._noting = before

    def clear(self) -> None:
        """Begin with another step."""
        self._rows.clear()

    def _add(self, parameter: Tensor, indices: Tensor) -> None:
        if not self._noting:
            return
        own = self._rows.get(id(parameter))
        if own is None:
            own = self._rows[id(parameter)] = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
        own[indices.flatten()] = True

    def watch(self, looked_up: Tensor, parameter: Tensor, indices: Tensor, phase: Phase) -> None:
        """Note rows once training's gradient comes to what was looked up.

        Args:
            looked_up: Rows of the parameter.
            parameter: The weight, ``[V, ...]``.
            indices: Of the rows, in any shape.
            phase: Tells training's own gradient from derivatives of it.
        """
        if looked_up.requires_grad:
            looked_up.register_hook(lambda grad: self._add(parameter, indices) if phase.first else None)

    def of(self, parameter: Tensor) -> Tensor:
        """Return true for each element of a parameter that lies in such a row, in its shape."""
        own = self._rows.get(id(parameter))
        if own is None:
            return torch.zeros_like(parameter, dtype=torch.bool)
        return own.view(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)

    def dense(self, parameter: Tensor, grad: Tensor | None) -> Tensor | None:
        """Return a gradient as a dense one; the rows of a sparse one are noted."""
        if grad is None or not grad.is_sparse:
            return grad
        self._add(parameter, grad._indices())
        return grad.to_dense()

    def only(self, parameter: Tensor, grad: Tensor | None) -> Tensor | None:
        """Return a gradient as a sparse one of these rows, as training had it."""
        if grad is None or grad.is_sparse:
            return grad
        own = self._rows.get(id(parameter))
        rows = torch.zeros(0, dtype=torch.int64, device=grad.device) if own is None else own.nonzero()[:, 0]
        return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, is_coalesced=True, check_invariants=False)
