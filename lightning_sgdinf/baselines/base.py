"""The protocol of baselines: rankings of the training examples that ask no query."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.replay import OpenedRun


@runtime_checkable
class Baseline(Protocol):
    """Ranks training examples."""

    @property
    def title(self) -> str:
        """Return the name of the values, for tables and axes."""
        ...

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``, float64: the most negative come first in a ranking by harm.

        Args:
            run: The run, its model and its data.
        """
        ...


@runtime_checkable
class BaselineOfStates(Baseline, Protocol):
    """A baseline that looks at more recorded states than the last one, and says at which."""

    def state_indices(self, log: Trajectory) -> tuple[int, ...]:
        """Return the indices of the recorded states it looks at, each once.

        Args:
            log: The record.
        """
        ...
