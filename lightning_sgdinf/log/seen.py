"""A recorded run seen in another way: the base of those that change some of what they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState


class SeenLog:
    """A recorded run, read through; subclasses change what they see in another way.

    Args:
        log: The record.
    """

    def __init__(self, log: Trajectory) -> None:
        self._log = log

    @property
    def inner(self) -> Trajectory:
        """Return the record itself."""
        return self._log

    @property
    def header(self) -> Header:
        """See `Trajectory`."""
        return self._log.header

    @property
    def digest(self) -> str:
        """See `Trajectory`."""
        return self._log.digest

    @property
    def finished(self) -> bool:
        """See `Trajectory`."""
        return self._log.finished

    @property
    def average(self) -> Mapping[str, Tensor] | None:
        """See `Trajectory`."""
        return self._log.average

    @property
    def state_indices(self) -> np.ndarray:
        """See `Trajectory`."""
        return self._log.state_indices

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return getattr(self._log, "size_bytes", 0)

    def __len__(self) -> int:
        """Return ``T``."""
        return len(self._log)

    def step(self, index: int) -> Step:
        """See `Trajectory`."""
        return self._seen(self._log.step(index))

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """See `Trajectory`."""
        return map(self._seen, self._log.steps(start, stop))

    def state(self, index: int) -> ModelState:
        """See `Trajectory`."""
        return self._log.state(index)

    def state_checksum(self, index: int) -> int | None:
        """See `Trajectory`."""
        return self._log.state_checksum(index)

    def _seen(self, step: Step) -> Step:
        return step
