"""The adjoint of a whole state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


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
        """Return ``Q``."""
        return self.params.shape[0]

    def columns(self, which: slice) -> Adjoint:
        """Return the adjoint of some of the queries."""
        return Adjoint(
            params=self.params[which],
            optimizer={k: v[which] for k, v in self.optimizer.items()},
            buffers={n: v[which] for n, v in self.buffers.items()},
            average=None if self.average is None else self.average[which],
            average_buffers={n: v[which] for n, v in self.average_buffers.items()},
        )
