"""What a baseline is: a ranking of the training examples that asks no query."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.opened import OpenedRun


@runtime_checkable
class Baseline(Protocol):
    """Ranks training examples."""

    @property
    def title(self) -> str:
        """What the values are, for tables and axes."""
        ...

    def rank(self, run: OpenedRun) -> Tensor:
        """Values ``[N]``, float64: the most negative come first in a ranking by harm.

        Args:
            run: The run, its model and its data.
        """
        ...


@runtime_checkable
class BaselineOfStates(Baseline, Protocol):
    """A baseline that looks at more recorded states than the last one, and says at which."""

    def state_indices(self, log: Trajectory) -> tuple[int, ...]:
        """Which of the recorded states it looks at, each once.

        Args:
            log: The record.
        """
        ...
