"""What a baseline is: a ranking of the training examples that asks the final model at most."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.adjoint.objective import Objective
from lightning_sgdinf.log.trajectory import Trajectory


@runtime_checkable
class Baseline(Protocol):
    """Ranks training examples."""

    @property
    def title(self) -> str:
        """What the values are, for tables and axes."""
        ...

    def rank(self, log: Trajectory, objective: Objective, examples: int) -> Tensor:
        """Values ``[N]``, float64: the most negative come first in a ranking by harm.

        Args:
            log: The record.
            objective: The opened model.
            examples: ``N``.
        """
        ...
