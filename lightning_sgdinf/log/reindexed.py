"""A run whose example ids are no positions in a data set, seen with ids ``0 .. N - 1``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from lightning_sgdinf.log.records import Draw, Header, MicroBatch, Step
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState


class Reindexed:
    """A recorded run whose examples are reindexed in the order of their recorded ids.

    Args:
        log: The record; its steps are read once, for their ids.

    Attributes:
        ids: The recorded id of each example, int64 ``[N]``, increasing.
    """

    def __init__(self, log: Trajectory) -> None:
        self._log = log
        ids = [np.unique(step.example_ids) for step in log.steps(0, len(log))]
        self.ids: np.ndarray = np.unique(np.concatenate(ids)) if ids else np.empty(0, np.int64)

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
        return self._reindex(self._log.step(index))

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """See `Trajectory`."""
        return map(self._reindex, self._log.steps(start, stop))

    def state(self, index: int) -> ModelState:
        """See `Trajectory`."""
        return self._log.state(index)

    def state_checksum(self, index: int) -> int | None:
        """See `Trajectory`."""
        return self._log.state_checksum(index)

    def _reindex(self, step: Step) -> Step:
        def in_draw(draw: Draw) -> Draw:
            return replace(draw, example_ids=self.ids.searchsorted(draw.example_ids))

        def in_micro_batch(micro: MicroBatch) -> MicroBatch:
            return replace(micro, draws=tuple(map(in_draw, micro.draws)))

        return replace(step, micro_batches=tuple(map(in_micro_batch, step.micro_batches)))


def reindex(log: Trajectory) -> tuple[Trajectory, int]:
    """Return a run that holds its batches, with examples numbered ``0 .. N - 1``, and ``N``."""
    length = log.header.datasets[0][1] if log.header.datasets else -1
    if length >= 0:
        return log, length
    reindexed = Reindexed(log)
    return reindexed, len(reindexed.ids)


def key_labels(log: Trajectory) -> tuple[str, ...] | None:
    """Return the keys of a run's examples as labels, if the user gave keys."""
    if isinstance(log, Reindexed) and log.header.extra.get("example_key"):
        return tuple(map(str, log.ids.tolist()))
    return None
