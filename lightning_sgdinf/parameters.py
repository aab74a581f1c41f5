"""Trained parameters as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ParameterVector:
    """The order in which trained parameters lie in a flat vector of ``P`` numbers.

    Attributes:
        names: Parameter names.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def slices(self) -> dict[str, slice]:
        """Return the place of each parameter."""
        places: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            places[name] = slice(start, start + prod(shape))
            start += prod(shape)
        return places

    @property
    def size(self) -> int:
        """Return ``P``."""
        return sum(prod(s) for s in self.shapes)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors, one per parameter, as one vector ``[P]``."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def join_gradients(self, grads: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
        """Return gradients as one vector ``[P]``, with zeros for a parameter that has none."""
        return self.join([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])

    def project(self, tensors: Sequence[Tensor | None], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inner products of rows ``[Q, P]`` with tensors, one per parameter and ``None`` for zero, ``[Q]``,
        and the tensors' joint norm."""
        parts = [None if t is None else t.detach().reshape(-1).to(rows.dtype) for t in tensors]
        present = [part for part in parts if part is not None]
        if not present:
            return torch.zeros_like(rows[:, 0]), torch.zeros_like(rows[0, 0])
        if self.size <= JOINED and len(present) == len(parts):
            joined = torch.cat(present)
            return rows @ joined, joined.norm()
        places = self.slices.values()
        products = [rows[:, at] @ part for at, part in zip(places, parts, strict=True) if part is not None]
        return torch.stack(products).sum(0), torch.stack([part.norm() for part in present]).norm()

    def add_to(self, total: Tensor, tensors: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """Add tensors times a factor, one per parameter and ``None`` for zero, to a vector ``[P]`` in place."""
        for place, tensor in zip(self.slices.values(), tensors, strict=True):
            if tensor is not None:
                total[place].add_(tensor.detach().reshape(-1), alpha=factor)

    def plus_rows(self, rows: Tensor, tensors: list[Tensor], factor: float = 1.0) -> Tensor:
        """Return rows ``[Q, P]`` plus tensors ``[Q, *shape]``, one per parameter, times a factor.

        Args:
            rows: Left as they are.
            tensors: In the parameters' order; the list is emptied on the way, so that each can be let go of.
            factor: Of the tensors.
        """
        if self.size <= JOINED:
            joined = self.join_rows(tensors).to(rows.dtype)
            return rows + (joined if factor == 1 else joined * factor)
        total = rows.clone()
        for place in self.slices.values():
            moved = tensors.pop(0).reshape(len(total), -1).to(total.dtype)
            total[:, place] += moved if factor == 1 else moved * factor
        return total

    def join_rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors ``[Q, *shape]``, one per parameter, as ``[Q, P]``."""
        return torch.cat([t.reshape(t.shape[0], -1) for t in tensors], dim=1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector ``[P]``, or of rows ``[Q, P]``, in the parameters' shapes."""
        lead = vector.shape[:-1]
        parts = vector.split([prod(s) for s in self.shapes], dim=-1)
        return [p.view((*lead, *s)) for p, s in zip(parts, self.shapes, strict=True)]


JOINED = 1 << 16
"""Elements of vectors that are faster joined than taken part by part."""


def joined_view(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector, without a copy where they lie side by side in memory; not to be written to."""
    first, place = tensors[0], tensors[0].storage_offset()
    storage = first.untyped_storage().data_ptr()
    for tensor in tensors:
        adjacent = tensor.is_contiguous() and tensor.storage_offset() == place and tensor.dtype == first.dtype
        if not adjacent or tensor.untyped_storage().data_ptr() != storage:
            return torch.cat([t.reshape(-1) for t in tensors])
        place += tensor.numel()
    return first.detach().as_strided((place - first.storage_offset(),), (1,))


@dataclass(frozen=True, slots=True, eq=False)
class ParameterMask:
    """Some of ``P`` trained parameters, element by element.

    Attributes:
        chosen: Bool ``[P]``, true for the ``k`` that may change; the places are those of a `ParameterVector`.

    Raises:
        ConfigurationError: None is chosen.
    """

    chosen: Tensor

    def __post_init__(self) -> None:
        if not bool(self.chosen.any()):
            raise ConfigurationError(
                f"expected at least one of {self.chosen.numel()} parameters to be chosen, got none; take a larger ratio"
            )

    @property
    def count(self) -> int:
        """Return ``k``."""
        return int(self.chosen.sum())

    def restrict(self, rows: Tensor) -> Tensor:
        """Return the chosen entries of rows ``[Q, P]``, as ``[Q, k]``."""
        return rows[:, self.chosen]

    def expand(self, rows: Tensor) -> Tensor:
        """Return rows ``[Q, P]`` with the given entries ``[Q, k]`` in the chosen places and zeros in the others."""
        whole = torch.zeros(len(rows), self.chosen.numel(), dtype=rows.dtype, device=rows.device)
        whole[:, self.chosen] = rows
        return whole
