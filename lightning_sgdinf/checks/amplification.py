"""The weight of a small change of the parameters early in a run relative to its end, followed along a walk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import Adjoint
from lightning_sgdinf.certificate import Amplification


@dataclass(slots=True)
class Growth:
    """Follows the size of the adjoint of the parameters on the way back, per query."""

    end: Tensor
    largest: Tensor
    step: Tensor

    @classmethod
    def from_end(cls, adjoint: Adjoint, steps: int) -> Growth:
        """Return the growth after the last step: none yet."""
        size = adjoint.params.detach().norm(dim=1)
        return cls(size, size, torch.full_like(size, steps, dtype=torch.int64))

    def see(self, adjoint: Adjoint, step: int) -> None:
        """Account for the adjoint before a step."""
        size = adjoint.params.detach().norm(dim=1)
        grown = size > self.largest
        self.largest = torch.where(grown, size, self.largest)
        self.step = self.step.masked_fill(grown, step)

    def value(self, first_step: int) -> Amplification | None:
        """Return the result; ``None`` if no query has a gradient at the end of the run."""
        there = self.end > 0
        if not bool(there.any()):
            return None
        factor, at = (self.largest[there].double() / self.end[there].double()).cpu().median(0)
        return Amplification(factor=float(factor), step=int(self.step[there][at]), first_step=first_step)
