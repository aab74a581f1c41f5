"""Read the log of a run."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import cached_property
from types import TracebackType

import numpy as np
from torch import Tensor

from lightning_sgdinf.errors import LogCorruptError, LogError, LogNotFoundError, StateNotStoredError
from lightning_sgdinf.log.checksum import content_digest
from lightning_sgdinf.log.directory import LogDirectory
from lightning_sgdinf.log.end_mark import EndMark, read_end_mark
from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.segment_reader import SegmentReader
from lightning_sgdinf.log.step_documents import BatchEntry
from lightning_sgdinf.log.verify import VerifyReport, verify_log
from lightning_sgdinf.state import ModelState

_OPEN_SEGMENTS = 3


class RunLog:
    """A recorded run of ``T`` steps; open it with `open`, close it or use it as a context manager.

    A log without an end, because training was given up or killed, can be read too: then the state *after* the last
    recorded step is unknown, so of ``n`` recorded steps ``T = n - 1`` count, whose states ``0 .. n - 1`` are known.
    `finished` is false then.

    Everything that is read is compared with its checksum first.

    Attributes:
        path: The directory.
        header: What holds for the whole run.
        finished: Whether the state after the last step was recorded.
        end_reason: How the run ended, ``"completed"`` or another reason.
        average: Averaged parameters at the end, by name, or ``None``.
    """

    def __init__(self, directory: LogDirectory, end: EndMark | None, unsealed: SegmentReader | None) -> None:
        """Not public: use `open`."""
        self.path = directory.path
        self._directory, self._end, self._unsealed = directory, end, unsealed
        self._open: OrderedDict[int, SegmentReader] = OrderedDict()
        self._paths = directory.segments("seg")
        self._run_id: str | None = None
        if end is not None:
            self.header: Header = end.header
        else:  # the newest says most
            newest = unsealed if unsealed is not None else self._segment(max(self._paths))
            self.header = newest.header
        self._run_id = self.header.run_id
        self.finished = end is not None and end.state is not None
        self.end_reason = _no_end(directory) if end is None else end.reason
        self.average: Mapping[str, Tensor] | None = None if end is None else end.average
        self._firsts, self._steps = self._chain()

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
        end = read_end_mark(directory.end) if directory.end.exists() else None
        unsealed = _unsealed_segment(directory) if end is None else None
        if end is None and unsealed is None and not directory.segments("seg"):
            raise LogNotFoundError(f"{directory.path} holds no complete step yet; wait, or record the run again")
        log = cls.__new__(cls)
        try:
            log.__init__(directory, end, unsealed)  # type: ignore[misc]
        except BaseException:
            log.close()
            raise
        return log

    def __enter__(self) -> RunLog:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close its files; harmless when done twice."""
        for segment in self._open.values():
            segment.close()
        self._open.clear()
        if self._unsealed is not None:
            self._unsealed.close()

    def __len__(self) -> int:
        """``T``, the number of steps whose following state is known."""
        return self._steps if self.finished else self._steps - 1

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._directory.size_bytes()

    @property
    def digest(self) -> str:
        """SHA-256 over the run's name, its length and the checksums of all steps, hexadecimal."""
        return self._content_digest

    @property
    def state_indices(self) -> np.ndarray:
        """Which states are stored, int64, increasing; ``T`` is the last if the run is finished."""
        return self._stored

    @cached_property
    def _content_digest(self) -> str:
        columns = [self._segment(first).steps.crc for first in self._firsts]
        return content_digest(self.header.run_id, len(self), columns, self._end.state_crc if self._end else None)

    @cached_property
    def _stored(self) -> np.ndarray:
        parts = [self._segment(first).steps.stored for first in self._firsts]
        if self.finished:
            parts.append(np.array([self._steps]))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def step(self, index: int) -> Step:
        """Step ``index`` of ``0 .. T - 1``.

        Raises:
            IndexError: There is no such step.
            LogCorruptError: It differs from what was written.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of a run of {len(self)} steps")
        return self._segment_of(index).steps.step(index, self._read_batch)

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Steps ``start .. stop - 1``, or downwards ``start - 1 .. stop`` if ``start > stop``.

        Raises:
            IndexError: Not all of them exist.
            LogCorruptError: One differs from what was written.
        """
        if not (0 <= start <= len(self) and 0 <= stop <= len(self)):
            raise IndexError(f"steps {start} to {stop} of a run of {len(self)} steps")
        for index in range(start, stop) if start <= stop else range(start - 1, stop - 1, -1):
            yield self._segment_of(index).steps.step(index, self._read_batch)

    def state(self, index: int) -> ModelState:
        """Stored state ``index`` of ``0 .. T``, bit for bit, on the CPU, in memory of its own.

        Fast when asked for in decreasing order.

        Raises:
            IndexError: There is no such state.
            StateNotStoredError: ``keep=`` left it out.
            LogCorruptError: It differs from what was written.
        """
        self._require_state(index)
        if index == self._steps:
            assert self._end is not None
            assert self._end.state is not None
            return self._end.state.clone()
        try:
            return self._segment_of(index).state(index)
        except StateNotStoredError:
            before = self.state_indices[self.state_indices < index]
            nearest = f"the nearest one before it is {before[-1]}" if len(before) else "there is none before it"
            raise StateNotStoredError(
                f"{self.path}: state {index} was not kept (keep={self.header.keep!r}), {nearest}; replay forwards from "
                "a stored state, or record with another keep"
            ) from None

    def state_checksum(self, index: int) -> int | None:
        """Recorded CRC-32 of state ``index`` of ``0 .. T``, stored or not; see `lightning_sgdinf.log.checksum`.

        Raises:
            IndexError: There is no such state.
            LogCorruptError: The record differs from what was written.
        """
        self._require_state(index)
        if index == self._steps:
            assert self._end is not None
            return self._end.state_crc
        table = self._segment_of(index).steps
        table.check(index)
        return table.state_crc[index - self._segment_of(index).first]

    def verify(self) -> VerifyReport:
        """Read everything once and compare it with its checksums; reports the first difference instead of raising."""
        return verify_log(self)

    def segments(self) -> Iterator[SegmentReader]:
        """Its segments in order, each open until a few others were used."""
        for first in self._firsts:
            yield self._segment(first)

    def _read_batch(self, index: int, entries: tuple[BatchEntry, ...], place: int) -> bytes:
        """A stored batch, also when its segment has been closed since the step was read."""
        return self._segment_of(index).batches.read(index, entries, place)

    def _require_state(self, index: int) -> None:
        if not 0 <= index <= len(self):
            raise IndexError(f"state {index} of a run with states 0 to {len(self)}")

    def _segment_of(self, index: int) -> SegmentReader:
        place = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self._segment(self._firsts[place])

    def _segment(self, first: int) -> SegmentReader:
        if self._unsealed is not None and first == self._unsealed.first:
            return self._unsealed
        segment = self._open.get(first)
        if segment is None:
            segment = SegmentReader(self._paths[first], first, run_id=self._run_id)
            try:
                self._check_against_end(segment)
            except LogError:
                segment.close()
                raise
            self._open[first] = segment
            while len(self._open) > _OPEN_SEGMENTS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(first)
        return segment

    def _check_against_end(self, segment: SegmentReader) -> None:
        if self._end is None:
            return
        entry = next((s for s in self._end.segments if s.first == segment.first), None)
        if entry is not None and (entry.steps, entry.checksum) != (len(segment.steps), segment.steps.checksum):
            raise LogCorruptError(
                f"{segment.path}: the segment has {len(segment.steps)} steps of checksum {segment.steps.checksum:08x}, "
                f"the end mark says {entry.steps} of {entry.checksum:08x}; restore the segment of this run"
            )

    def _chain(self) -> tuple[list[int], int]:
        """First steps of all segments, and the number of steps; there must be no gap."""
        steps: dict[int, int] = {}
        if self._end is not None:
            steps = {entry.first: entry.steps for entry in self._end.segments}
            missing = [self._directory.sealed(first).name for first in steps if first not in self._paths]
            extra = [path.name for first, path in self._paths.items() if first not in steps]
            if missing or extra:
                what = f"{', '.join(missing)} missing" if missing else f"{', '.join(extra)} not part of this run"
                raise LogCorruptError(f"{self.path}: {what}, says end.h5; restore the log from a copy")
        else:
            steps = {first: len(self._segment(first).steps) for first in self._paths}
            if self._unsealed is not None:
                steps.setdefault(self._unsealed.first, len(self._unsealed.steps))
        expected = 0
        for first, count in steps.items():
            if first != expected:
                raise LogCorruptError(
                    f"{self.path}: a segment begins with step {first}, expected {expected}: one is missing before it; "
                    "restore it from a copy"
                )
            expected += count
        if self._end is not None and expected != self._end.steps:
            raise LogCorruptError(
                f"{self._directory.end}: {self._end.steps} steps, its segments have {expected}; restore the log "
                "from a copy"
            )
        return list(steps), expected


def _unsealed_segment(directory: LogDirectory) -> SegmentReader | None:
    """What the last writer did not come to seal; ``None`` if there is nothing, or the writer is still alive."""
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
    """The newest header of a log; does not read the log itself.

    Raises:
        LogNotFoundError: There is no log, or no step in it.
        LogVersionError: It has a format this release does not read.
        LogCorruptError: The header is damaged.
    """
    directory = LogDirectory(path)
    directory.require()
    if directory.end.exists():
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
