"""A run whose example ids are no positions in a data set, seen with ids ``0 .. N - 1``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_sgdinf.log.records import Draw, MicroBatch, Step
from lightning_sgdinf.log.seen import SeenLog
from lightning_sgdinf.log.trajectory import Trajectory


class Reindexed(SeenLog):
    """A recorded run whose examples are reindexed in the order of their recorded ids.

    Args:
        log: The record; its steps are read once, for their ids.

    Attributes:
        ids: The recorded id of each example, int64 ``[N]``, increasing.
    """

    def __init__(self, log: Trajectory) -> None:
        super().__init__(log)
        ids = [np.unique(step.example_ids) for step in log.steps(0, len(log))]
        self.ids: np.ndarray = np.unique(np.concatenate(ids)) if ids else np.empty(0, np.int64)

    def _seen(self, step: Step) -> Step:
        def in_draw(draw: Draw) -> Draw:
            return replace(draw, example_ids=self.ids.searchsorted(draw.example_ids))

        def in_micro_batch(micro: MicroBatch) -> MicroBatch:
            return replace(micro, draws=tuple(map(in_draw, micro.draws)))

        return replace(step, micro_batches=tuple(map(in_micro_batch, step.micro_batches)))


def reindex(log: Trajectory) -> tuple[Trajectory, int]:
    """Return a run that holds its batches, with examples numbered ``0 .. N - 1``, and ``N``."""
    length = log.header.datasets[0][1] if log.header.datasets else -1
    if length >= 0:  # examples of other data, if these changed, are numbered on
        return log, max(length, 1 + max(int(step.example_ids.max(initial=-1)) for step in log.steps(0, len(log))))
    reindexed = Reindexed(log)
    return reindexed, len(reindexed.ids)


def key_labels(log: Trajectory) -> tuple[str, ...] | None:
    """Return the keys of a run's examples as labels, if the user gave keys."""
    if isinstance(log, Reindexed) and log.header.extra.get("example_key"):
        return tuple(map(str, log.ids.tolist()))
    return None
