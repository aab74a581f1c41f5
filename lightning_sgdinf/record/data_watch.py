"""Watch if the training data stay what they are from epoch to epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_sgdinf.record.example_numbers import data_fingerprint


class DataWatch:
    """Tells versions of the training data apart.

    Args:
        stored: The batches are in the log, so that other data under the same indices do no harm.
        problem: Called with a sentence when the data are others and replay could not know.
        remark: Called with a sentence about something to know.
    """

    def __init__(self, *, stored: bool, problem: Callable[[str], None], remark: Callable[[str], None]) -> None:
        self._stored, self._problem, self._remark = stored, problem, remark
        self._versions: dict[int, list[int | None]] = {}
        self._seen: dict[int, tuple[int, Any, int]] = {}  # epoch, data set and version by position

    @property
    def first(self) -> int | None:
        """Return a checksum of what the first loader's data set kept in the beginning, if it kept something."""
        return self._versions.get(0, [None])[0]

    def version(self, position: int, dataset: Any, epoch: int) -> int:
        """Return the number of the data's version, from 0 on.

        Args:
            position: Of the loader.
            dataset: Its data set, now.
            epoch: The present one; data that change do so between epochs.
        """
        before, data, version = self._seen.get(position, (-1, dataset, 0))
        if before == epoch and data is dataset:
            return version
        fingerprint = data_fingerprint(dataset)
        known = self._versions.setdefault(position, [])
        if fingerprint not in known:
            known.append(fingerprint)
            if len(known) > 1:
                self._report(epoch)
        elif fingerprint is None and data is not dataset:
            self._remark(
                f"the training data were made anew in epoch {epoch}, and {type(dataset).__qualname__} does not show if "
                "they are those of before. Ids of examples are their indices all the same. If other examples come "
                "under the same indices, pass TrajectoryRecorder(store_batches=True, example_key=...)"
            )
        version = known.index(fingerprint)
        self._seen[position] = epoch, dataset, version
        return version

    def _report(self, epoch: int) -> None:
        if self._stored:
            self._remark(
                f"the training data are others from epoch {epoch} on. Their examples are known again by their content; "
                "where they come out differently each time (augmentation), pass example_key=, which names them"
            )
            return
        self._problem(
            f"the training data are others from epoch {epoch} on, and ids are indices of each epoch's own, so that one "
            "id is of several examples. Let every epoch draw from one data set (a sampler chooses), or keep the "
            "batches in the log: TrajectoryRecorder(store_batches=True)"
        )
