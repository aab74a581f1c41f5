"""A recorded run up to one of its states, as if it had ended there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from lightning_sgdinf.log.seen import SeenLog
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState


class Shortened(SeenLog):
    """A recorded run's first steps.

    Args:
        log: The record.
        steps: How many, from 1 to all.

    Attributes:
        rebuild: Makes the last state, where it is not stored; set by who can.
    """

    def __init__(self, log: Trajectory, steps: int) -> None:
        super().__init__(log)
        self._steps = steps
        self._last: ModelState | None = None
        self.rebuild: Callable[[], ModelState] | None = None

    @property
    def digest(self) -> str:
        """See `Trajectory`; that of another run than the whole one."""
        return hashlib.sha256(f"{self._log.digest} {self._steps}".encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """See `Trajectory`."""
        return True

    @property
    def average(self) -> None:
        """See `Trajectory`; it is known at the end of the whole run alone."""
        return

    @property
    def state_indices(self) -> np.ndarray:
        """See `Trajectory`."""
        stored = np.asarray(self._log.state_indices)
        return stored[stored <= self._steps]

    def __len__(self) -> int:
        """Return ``T``."""
        return self._steps

    def state(self, index: int) -> ModelState:
        """See `Trajectory`."""
        if index != self._steps or self.rebuild is None or index in self.state_indices:
            return super().state(index)
        if self._last is None:
            self._last = self.rebuild()
        return self._last.clone()
