"""The interface by which replay reads a run, whoever keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.state import ModelState


@runtime_checkable
class Trajectory(Protocol):
    """A recorded run of ``T`` steps with states ``0 .. T``; `RunLog` has it on disk, `MemoryLog` in memory."""

    @property
    def header(self) -> Header:
        """All that holds for the whole run."""
        ...

    @property
    def digest(self) -> str:
        """Hexadecimal name of the content."""
        ...

    @property
    def finished(self) -> bool:
        """True if the state after the last step is known."""
        ...

    @property
    def average(self) -> Mapping[str, Tensor] | None:
        """Averaged parameters at the end, by name, if a weight-averaging callback was in use."""
        ...

    @property
    def state_indices(self) -> np.ndarray:
        """Indices of the stored states, int64, increasing."""
        ...

    def __len__(self) -> int:
        """Return ``T``."""
        ...

    def step(self, index: int) -> Step:
        """Return step ``index`` of ``0 .. T-1``."""
        ...

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield steps ``start .. stop-1``; with ``start > stop`` downwards, ``start-1 .. stop``."""
        ...

    def state(self, index: int) -> ModelState:
        """Return stored state ``index``, a copy of its own on the CPU."""
        ...

    def state_checksum(self, index: int) -> int | None:
        """Return the recorded CRC-32 of state ``index``, stored or not."""
        ...
