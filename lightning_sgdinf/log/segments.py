"""The segments of a log, a few of them open at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from lightning_sgdinf.errors import LogCorruptError, LogError
from lightning_sgdinf.log.directory import LogDirectory
from lightning_sgdinf.log.end_mark import EndMark, total_steps
from lightning_sgdinf.log.segment_reader import SegmentReader

_MAX_OPEN = 3


class Segments:
    """The segments of one run, without a gap.

    Args:
        directory: Of the log.
        end: Its end mark, if there is one: then the segments must be those that it names.
        unsealed: The segment that was not sealed, if there is one. It stays open until `close`.

    Attributes:
        header: Of the run, as the end mark has it, or the segment that was written last.
        firsts: First step of each segment.
        steps: Number of recorded steps.

    Raises:
        LogCorruptError: A segment is missing, or belongs to another run.
    """

    def __init__(self, directory: LogDirectory, end: EndMark | None, unsealed: SegmentReader | None) -> None:
        self._directory, self._end, self._unsealed = directory, end, unsealed
        self._open: OrderedDict[int, SegmentReader] = OrderedDict()
        self._paths = directory.segments("seg")
        self._run_id: str | None = None  # until the header is known
        try:
            self.header = self._newest().header if end is None else end.header
            self._run_id = self.header.run_id
            counts = self._recorded() if end is None else self._announced(end)
            self.firsts, self.steps = list(counts), total_steps(directory.path, counts.items())
            if end is not None and self.steps != end.steps:
                raise LogCorruptError(
                    f"{directory.end}: {end.steps} steps, its segments have {self.steps}; restore the log from a copy"
                )
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[SegmentReader]:
        """Yield the segments in order, each open until a few others were used."""
        for first in self.firsts:
            yield self._segment(first)

    @cached_property
    def checksums(self) -> list[np.ndarray]:
        """The checksums of the steps of each segment, uint32."""
        return [segment.steps.crc for segment in self]

    @cached_property
    def stored(self) -> np.ndarray:
        """Indices of the stored states, int64, increasing; that of the end mark is the last."""
        parts = [segment.steps.stored for segment in self]
        if self._end is not None and self._end.has_state:
            parts.append(np.array([self.steps]))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def of_step(self, index: int) -> SegmentReader:
        """Return the segment of a step."""
        return self._segment(self.firsts[int(np.searchsorted(self.firsts, index, side="right")) - 1])

    def close(self) -> None:
        """Close all files; harmless when done twice."""
        for segment in self._open.values():
            segment.close()
        self._open.clear()
        if self._unsealed is not None:
            self._unsealed.close()

    def _newest(self) -> SegmentReader:
        return self._unsealed if self._unsealed is not None else self._segment(max(self._paths))

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
            while len(self._open) > _MAX_OPEN:
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

    def _announced(self, end: EndMark) -> dict[int, int]:
        """Return first step and number of steps of each segment, as the end mark says; all of them must be there."""
        counts = {entry.first: entry.steps for entry in end.segments}
        missing = [self._directory.sealed(first).name for first in counts if first not in self._paths]
        extra = [path.name for first, path in self._paths.items() if first not in counts]
        if missing or extra:
            what = f"{', '.join(missing)} missing" if missing else f"{', '.join(extra)} not part of this run"
            raise LogCorruptError(f"{self._directory.path}: {what}, says end.h5; restore the log from a copy")
        return counts

    def _recorded(self) -> dict[int, int]:
        """Return first step and number of steps of each segment, as the segments say."""
        counts = {first: len(self._segment(first).steps) for first in self._paths}
        if self._unsealed is not None:
            counts.setdefault(self._unsealed.first, len(self._unsealed.steps))
        return counts


class SegmentsOfThreads:
    """The segments of one run, for each thread that asks in files of its own; otherwise as `Segments`.

    Args:
        directory: Of the log.
        end: Its end mark, if there is one.
        unsealed: The segment that was not sealed, if there is one; this thread's.
    """

    def __init__(self, directory: LogDirectory, end: EndMark | None, unsealed: SegmentReader | None) -> None:
        self._source = directory, end
        self._unsealed = None if unsealed is None else (unsealed.path, unsealed.first)
        self._opened: list[Segments] = []
        self._local = threading.local()
        self._take(Segments(directory, end, unsealed))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own(), name)

    def __iter__(self) -> Iterator[SegmentReader]:
        """Yield the segments in order."""
        return iter(self._own())

    def close(self) -> None:
        """Close the files of all threads; harmless when done twice."""
        for segments in self._opened:
            segments.close()

    def _own(self) -> Segments:
        own = getattr(self._local, "segments", None)
        if own is None:
            unsealed = None if self._unsealed is None else SegmentReader.of_unsealed(*self._unsealed)
            own = self._take(Segments(*self._source, unsealed))
        return own

    def _take(self, segments: Segments) -> Segments:
        self._opened.append(segments)
        self._local.segments = segments
        return segments
