"""Read the log of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from types import TracebackType

import numpy as np
from torch import Tensor

from lightning_sgdinf.errors import LogCorruptError, LogNotFoundError, StateNotStoredError
from lightning_sgdinf.log.checksum import content_digest
from lightning_sgdinf.log.directory import LogDirectory
from lightning_sgdinf.log.end_mark import EndMark, read_end_mark
from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.segment_reader import SegmentReader
from lightning_sgdinf.log.segments import SegmentsOfThreads
from lightning_sgdinf.log.step_documents import BatchEntry
from lightning_sgdinf.log.verify import VerifyReport, verify_segments
from lightning_sgdinf.state import ModelState


class RunLog:
    """A recorded run of ``T`` steps; open it with `open`, close it or use it as a context manager.

    A log without an end, because training was given up or killed, can be read too: then the state *after* the last
    recorded step is unknown, so of ``n`` recorded steps ``T = n - 1`` count, whose states ``0 .. n - 1`` are known.
    `finished` is false then.

    Everything that is read is compared with its checksum first. Several threads may read at once: each through files of
    its own.

    Attributes:
        path: The directory.
        header: Of the run.
        finished: The state after the last step was recorded.
        end_reason: Of the end, ``"completed"`` or another.
        average: Averaged parameters at the end, by name, or ``None``.
    """

    def __init__(self, directory: LogDirectory, end: EndMark | None, unsealed: SegmentReader | None) -> None:
        """Not public: use `open`."""
        self.path = directory.path
        self._directory, self._end = directory, end
        self._segments = SegmentsOfThreads(directory, end, unsealed)
        self.header: Header = self._segments.header
        self.finished = end is not None and end.has_state
        self.end_reason = _no_end(directory) if end is None else end.reason
        self.average: Mapping[str, Tensor] | None = None if end is None else end.average

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunLog:
        """Open a log for reading; nothing in it is changed.

        Args:
            path: The directory.

        Raises:
            LogNotFoundError: There is no log, or no step in it.
            LogVersionError: It has a format this release does not read.
            LogCorruptError: A part is missing or damaged.
        """
        directory = LogDirectory(path)
        directory.require()
        end = read_end_mark(directory.end) if directory.has_end else None
        unsealed = _unsealed_segment(directory) if end is None else None
        if end is None and unsealed is None and not directory.segments("seg"):
            raise LogNotFoundError(f"{directory.path} holds no complete step yet; wait, or record the run again")
        return cls(directory, end, unsealed)

    def __enter__(self) -> RunLog:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close its files; harmless when done twice."""
        self._segments.close()

    def __len__(self) -> int:
        """Return ``T``, the number of steps whose following state is known."""
        return self._segments.steps if self.finished else self._segments.steps - 1

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._directory.size_bytes()

    @property
    def digest(self) -> str:
        """SHA-256 over the run's name, its length and the checksums of all steps, hexadecimal."""
        last = None if self._end is None else self._end.state_crc
        return content_digest(self.header.run_id, len(self), self._segments.checksums, last)

    @property
    def state_indices(self) -> np.ndarray:
        """Indices of the stored states, int64, increasing; ``T`` is the last if the run is finished."""
        return self._segments.stored

    def step(self, index: int) -> Step:
        """Return step ``index`` of ``0 .. T - 1``.

        Raises:
            IndexError: There is no such step.
            LogCorruptError: It differs from what was written.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of a run of {len(self)} steps")
        return self._segments.of_step(index).steps.step(index, self._read_batch)

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield steps ``start .. stop - 1``, or downwards ``start - 1 .. stop`` if ``start > stop``.

        Raises:
            IndexError: Not all of them exist.
            LogCorruptError: One differs from what was written.
        """
        if not (0 <= start <= len(self) and 0 <= stop <= len(self)):
            raise IndexError(f"steps {start} to {stop} of a run of {len(self)} steps")
        for index in range(start, stop) if start <= stop else range(start - 1, stop - 1, -1):
            yield self._segments.of_step(index).steps.step(index, self._read_batch)

    def state(self, index: int) -> ModelState:
        """Return stored state ``index`` of ``0 .. T``, bit for bit, on the CPU, in memory of its own.

        Fast when asked for in decreasing order.

        Raises:
            IndexError: There is no such state.
            StateNotStoredError: ``keep=`` left it out.
            LogCorruptError: It differs from what was written.
        """
        self._require_state(index)
        if index == self._segments.steps:
            assert self._end is not None
            return self._end.read_state()
        try:
            return self._segments.of_step(index).state(index)
        except StateNotStoredError:
            before = self.state_indices[self.state_indices < index]
            nearest = f"the nearest one before it is {before[-1]}" if len(before) else "there is none before it"
            raise StateNotStoredError(
                f"{self.path}: state {index} was not kept (keep={self.header.keep!r}), {nearest}; replay forwards from "
                "a stored state, or record with another keep"
            ) from None

    def state_checksum(self, index: int) -> int | None:
        """Return the recorded CRC-32 of state ``index`` of ``0 .. T``, stored or not; see `state_checksum`.

        Raises:
            IndexError: There is no such state.
            LogCorruptError: The record differs from what was written.
        """
        self._require_state(index)
        if index == self._segments.steps:
            assert self._end is not None
            return self._end.state_crc
        segment = self._segments.of_step(index)
        segment.steps.check(index)
        return segment.steps.state_crc[index - segment.first]

    def verify(self) -> VerifyReport:
        """Read everything once and compare it with its checksums; reports the first difference instead of raising."""
        return verify_segments(self.header, self._segments, finished=self.finished)

    def segments(self) -> Iterator[SegmentReader]:
        """Yield its segments in order, each open until a few others were used."""
        yield from self._segments

    def _read_batch(self, index: int, entries: tuple[BatchEntry, ...], place: int) -> bytes:
        """Read a stored batch, also when its segment has been closed since the step was read."""
        return self._segments.of_step(index).batches.read(index, entries, place)

    def _require_state(self, index: int) -> None:
        if not 0 <= index <= len(self):
            raise IndexError(f"state {index} of a run with states 0 to {len(self)}")


def _unsealed_segment(directory: LogDirectory) -> SegmentReader | None:
    """Return what the last writer did not come to seal; ``None`` if there is nothing, or the writer is still alive."""
    live = directory.segments("live")
    if not live or directory.is_being_written():
        return None
    first = max(live)
    if first in directory.segments("seg"):  # a recovery was killed when it was nearly done
        return None
    try:
        segment = SegmentReader.of_unsealed(live[first], first)
    except LogCorruptError:  # it died before the first flush was complete
        return None
    with suppress(LogCorruptError):
        if len(segment.steps) and segment.header:
            return segment
    segment.close()
    return None


def _no_end(directory: LogDirectory) -> str:
    if directory.is_being_written():
        return "the run is still going on"
    return f"the run was killed; `sgdinf-log recover {directory.path}` seals what it left"


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the newest header of a log; does not read the log itself.

    Raises:
        LogNotFoundError: There is no log, or no step in it.
        LogVersionError: It has a format this release does not read.
        LogCorruptError: The header is damaged.
    """
    directory = LogDirectory(path)
    directory.require()
    if directory.has_end:
        return read_end_mark(directory.end).header
    sealed, live = directory.segments("seg"), directory.segments("live")
    if sealed:
        first = max(sealed)
        segment = SegmentReader(sealed[first], first)
    else:
        first = max(live)
        segment = SegmentReader.of_unsealed(live[first], first, check=False)
    with closing(segment):
        return segment.header
