"""The stored states of one segment, bit for bit.

With differences, a state is reached from the nearest of three places: the first anchor, the last anchor, or the state
read before. Walking backwards therefore costs one row per state.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.checksum import StateChecksum
from lightning_sgdinf.log.codecs import Codec, step_back, step_forth
from lightning_sgdinf.log.hdf5 import checked_dataset, read_rows, reading
from lightning_sgdinf.log.words import to_words, word_type
from lightning_sgdinf.state import Layout, ModelState

_READ_AHEAD_BYTES = 1 << 20


class StateTable:
    """Stored states ``0 .. length - 1`` of a segment, counted without gaps.

    Args:
        file: Open segment.
        path: Its path, for errors.
        layout: Of its states.
        codec: How they are stored.
        length: Number of stored states.
        sealed: Whether there is a last anchor.
    """

    def __init__(
        self, file: h5py.File, path: Path, layout: Layout, codec: Codec, length: int, *, sealed: bool = True
    ) -> None:
        self._path, self._layout, self._length, self._sealed = path, layout, length, sealed
        self._checksum = StateChecksum(layout)
        self._position: int | None = None
        with reading(path, "states"):
            self._lanes = {
                dtype: _LaneReader(file, dtype, n * word_type(dtype).per_element, codec, sealed)
                for dtype, n in layout.lanes.items()
                if n and length
            }
            rows = length - codec.differences if length else 0
            for dtype, lane in self._lanes.items():
                if sealed and lane.rows != rows:
                    raise ValueError(f"state/{dtype} has {lane.rows} rows, expected {rows}")
        self._differences = codec.differences

    def state(self, row: int, index: int, recorded: int) -> ModelState:
        """A stored state of its own memory.

        Args:
            row: Which one.
            index: Its number in the run, for errors.
            recorded: Its checksum.

        Raises:
            LogCorruptError: It differs from its checksum.
        """
        lanes = self._layout.empty()
        words = {dtype: to_words(lane, dtype) for dtype, lane in lanes.items()}
        with reading(self._path, f"state {index}"):
            if self._differences:
                self._walk_to(row)
                for dtype, lane in self._lanes.items():
                    words[dtype][:] = lane.value
            else:
                for dtype, lane in self._lanes.items():
                    lane.read(row, words[dtype], backwards=self._position is not None and row < self._position)
                self._position = row
        if self._checksum.of_words(words) != recorded:
            self._position = None
            raise LogCorruptError(
                f"{self._path}: state {index} differs from its checksum; restore the file from a copy"
            )
        return self._layout.unpack(lanes)

    def check_last_anchor(self) -> None:
        """Compare the last anchor with the state reached from the first.

        Raises:
            LogCorruptError: They differ.
        """
        if not self._differences or not self._sealed or not self._length:
            return
        with reading(self._path, "last anchor"):
            self._start_at(0)
            self._walk(self._length - 1)
            for dtype, lane in self._lanes.items():
                if not np.array_equal(lane.value, lane.anchor(1)):
                    raise LogCorruptError(f"{self._path}: the last anchor of {dtype} differs from the last state")

    def _walk_to(self, row: int) -> None:
        last = self._length - 1
        here = abs(row - self._position) if self._position is not None else self._length + 1
        from_last = last - row if self._sealed else self._length + 1
        if here > min(row, from_last):
            self._start_at(0 if row < from_last else last)
        self._walk(row)

    def _start_at(self, row: int) -> None:
        self._position = None
        for lane in self._lanes.values():
            lane.value = lane.anchor(0 if row == 0 else 1)
        self._position = row

    def _walk(self, row: int) -> None:
        position, self._position = self._position, None
        assert position is not None
        for lane in self._lanes.values():
            for between in range(position - 1, row - 1, -1):
                step_back(lane.row(between, backwards=True), lane.value)
            for between in range(position, row):
                step_forth(lane.row(between, backwards=False), lane.value)
        self._position = row


class _LaneReader:
    """Rows of one lane; small ones are read several at a time."""

    def __init__(self, file: h5py.File, dtype: str, words: int, codec: Codec, sealed: bool) -> None:
        kind = word_type(dtype)
        self.value = np.empty(0, kind.pattern)
        self._anchors = None
        if codec.differences:
            self._anchors = checked_dataset(file, f"anchor/{dtype}", kind.plain, words, sealed=sealed)
        stored = kind.pattern if codec.differences else np.dtype(kind.plain)
        self._dataset = checked_dataset(file, f"state/{dtype}", stored.str, words, sealed=sealed)
        self.rows = int(self._dataset.shape[0])
        self._pattern = kind.pattern
        self._ahead = max(1, min(64, _READ_AHEAD_BYTES // (words * kind.pattern.itemsize)))
        self._buffer = np.empty((self._ahead, words), stored)
        self._start = self._stop = 0

    def anchor(self, which: int) -> np.ndarray:
        """A copy of the first (0) or last (1) stored state."""
        assert self._anchors is not None
        return np.ascontiguousarray(self._anchors[which]).view(self._pattern)

    def read(self, row: int, out: np.ndarray, *, backwards: bool) -> None:
        """One row as patterns into ``out``."""
        if self._ahead == 1 and row < self.rows:
            read_rows(self._dataset, row, out.view(self._dataset.dtype)[None])
        else:
            out[:] = self.row(row, backwards=backwards)

    def row(self, row: int, *, backwards: bool) -> np.ndarray:
        """One row as patterns; valid until the next call."""
        if not self._start <= row < self._stop:
            start = max(0, row + 1 - self._ahead) if backwards else row
            stop = row + 1 if backwards else min(self.rows, row + self._ahead)
            if not 0 <= start < stop <= self.rows:
                raise IndexError(f"row {row} of {self.rows}")
            self._start = self._stop = 0
            read_rows(self._dataset, start, self._buffer[: stop - start])
            self._start, self._stop = start, stop
        return self._buffer[row - self._start].view(self._pattern)
