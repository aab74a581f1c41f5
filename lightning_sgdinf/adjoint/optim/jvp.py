r"""The derivative of an optimizer's step, forwards: small changes of state and gradient to that of the next state.

A rule works element by element, so its Jacobian is one diagonal for each pair of tensors, and the transposed derivative
of ones is that diagonal. Clipping's Jacobian is symmetric, so the way back is the way forth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.optim.step import TakenStep


@dataclass(frozen=True, slots=True)
class Tangent:
    """Changes of a state, one per row.

    Attributes:
        params: ``[K, P]``.
        optimizer: Per key of the optimizer's state, ``[K, P]``; keys that did not change are absent.
    """

    params: Tensor
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, which: slice | Tensor) -> Tangent:
        """Return some of the rows."""
        return Tangent(self.params[which], {k: v[which] for k, v in self.optimizer.items()})


class LinearStep:
    """An optimizer's step that was taken, as a linear map of changes.

    Args:
        taken: The step.
    """

    def __init__(self, taken: TakenStep) -> None:
        self._taken = taken
        keys = sorted({k for _, update in taken.stretches for k, v in update.state.items() if v.ndim})
        unit = torch.eye(1 + len(keys), dtype=taken.params.dtype, device=taken.params.device)
        ones = unit[:, :, None].expand(-1, -1, len(taken.params))
        adjoint = Adjoint(params=ones[:, 0], optimizer={k: ones[:, 1 + i] for i, k in enumerate(keys)})
        self._keys = keys
        self._params, self._state, self._grad = replace(taken, unclip=lambda push: push).pull(adjoint)

    def push(self, tangent: Tangent, grad: Tensor) -> Tangent:
        """Return the change of the next state.

        Args:
            tangent: Of the state before the step, ``K`` rows.
            grad: Change of the raw gradient, ``[K, P]``.
        """
        clipped = self._taken.unclip(grad)

        def out(row: int) -> Tensor:
            total = (self._params[row] * tangent.params).addcmul_(self._grad[row], clipped)
            for key, before in tangent.optimizer.items():
                if key in self._state:
                    total.addcmul_(self._state[key][row], before)
            return total

        return Tangent(out(0), {k: out(1 + i) for i, k in enumerate(self._keys)})


def difference(one: TakenStep, other: TakenStep) -> Tangent:
    """Return the difference of the states that two steps from the same state lead to, ``one - other``, in one row."""
    optimizer: dict[str, Tensor] = {}
    for (stretch, mine), (_, theirs) in zip(one.stretches, other.stretches, strict=True):
        for key, value in mine.state.items():
            if value.ndim:
                whole = optimizer.setdefault(key, torch.zeros_like(one.params)[None])
                whole[0, stretch.where] = value - theirs.state[key]
    return Tangent((one.params - other.params)[None], optimizer)
