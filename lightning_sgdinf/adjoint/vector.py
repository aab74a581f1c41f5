"""Trained parameters as one vector, and the adjoint of a whole state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


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
        """Where each parameter lies."""
        found: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            found[name] = slice(start, start + prod(shape))
            start += prod(shape)
        return found

    @property
    def size(self) -> int:
        """``P``."""
        return sum(prod(s) for s in self.shapes)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors, one per parameter, as one vector ``[P]``."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def join_rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors ``[Q, *shape]``, one per parameter, as ``[Q, P]``."""
        return torch.cat([t.reshape(t.shape[0], -1) for t in tensors], dim=1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector ``[P]``, or of rows ``[Q, P]``, in the parameters' shapes."""
        lead = vector.shape[:-1]
        parts = vector.split([prod(s) for s in self.shapes], dim=-1)
        return [p.view(*lead, *s) for p, s in zip(parts, self.shapes, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjoint:
    r"""The derivative of ``Q`` queries with respect to every part of a state, :math:`u = \partial q / \partial s_t`.

    Attributes:
        params: ``[Q, P]``.
        optimizer: Per key of the optimizer's state (``"momentum_buffer"``), ``[Q, P]``; keys that do not matter are
            absent.
        buffers: Per buffer name, ``[Q, *shape]``; those that do not matter are absent.
        average: Of a running average of the weights, ``[Q, P]``; ``None`` if the queries do not depend on one.
        average_buffers: Of the averaged buffers, like ``buffers``.
    """

    params: Tensor
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    average: Tensor | None = None
    average_buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        """``Q``."""
        return self.params.shape[0]

    def columns(self, which: slice) -> Adjoint:
        """The adjoint of some of the queries."""
        return Adjoint(
            params=self.params[which],
            optimizer={k: v[which] for k, v in self.optimizer.items()},
            buffers={n: v[which] for n, v in self.buffers.items()},
            average=None if self.average is None else self.average[which],
            average_buffers={n: v[which] for n, v in self.average_buffers.items()},
        )
