"""What a baseline is: a ranking of the training examples that asks no query."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.baselines.evidence import Evidence


@runtime_checkable
class Baseline(Protocol):
    """Ranks training examples."""

    @property
    def title(self) -> str:
        """What the values are, for tables and axes."""
        ...

    def rank(self, evidence: Evidence) -> Tensor:
        """Values ``[N]``, float64: the most negative come first in a ranking by harm.

        Args:
            evidence: The run, its model and its data.
        """
        ...
