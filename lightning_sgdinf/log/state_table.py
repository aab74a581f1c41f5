"""The stored states of one segment, bit for bit.

With differences, a state is reached from the nearest of three places: the first anchors, the last anchors, or the state
read before. Walking backwards therefore costs one row per state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.bit_patterns import row_bytes, state_patterns, word_counts, word_type
from lightning_sgdinf.log.checksum import StateChecksum
from lightning_sgdinf.log.chunk_frames import Frames
from lightning_sgdinf.log.codecs import Codec
from lightning_sgdinf.log.delta_coding import DeltaCursor
from lightning_sgdinf.log.hdf5 import ReadHdf5, checked_dataset, read_rows, reading
from lightning_sgdinf.state import Layout

_READ_AHEAD_BYTES = 1 << 20


class StateTable:
    """Stored states ``0 .. length - 1`` of a segment, counted without gaps.

    Args:
        file: Open segment.
        path: Its path, for errors.
        layout: Of its states.
        codec: Of the states.
        length: Number of stored states.
        sealed: There are last anchors.
    """

    def __init__(
        self, file: ReadHdf5, path: Path, layout: Layout, codec: Codec, length: int, *, sealed: bool = True
    ) -> None:
        self._path, self._layout, self._length, self._sealed = path, layout, length, sealed
        self._order = codec.order
        self._checksum = StateChecksum(layout)
        self._position: int | None = None
        with reading(path, "states"):
            if length and row_bytes(layout) > file.id.get_filesize():  # the first one is stored as it is
                raise ValueError(f"states of {row_bytes(layout)} bytes in a file of {file.id.get_filesize()}")
            self._buffers = {
                dtype: _BufferReader(file, dtype, words, codec, length, sealed)
                for dtype, words in word_counts(layout).items()
                if words and length
            }

    def read(self, row: int, index: int, recorded: int) -> dict[str, Tensor]:
        """Read a stored state as flat buffers of its own.

        Args:
            row: Its place among the stored states.
            index: Its number in the run, for errors.
            recorded: Its checksum.

        Raises:
            LogCorruptError: It differs from its checksum.
        """
        with reading(self._path, f"state {index}"):
            flat = self._layout.empty()
            patterns = state_patterns(flat)
            self._read(row, patterns)
        if self._checksum.of_patterns(patterns) != recorded:
            self._position = None
            raise LogCorruptError(
                f"{self._path}: state {index} differs from its checksum; restore the file from a copy"
            )
        return flat

    def check_last_anchors(self) -> None:
        """Compare the last anchors with the states reached from the first.

        Raises:
            LogCorruptError: They differ.
        """
        if not self._order or not self._sealed or not self._length:
            return
        kept = min(self._order, self._length)
        with reading(self._path, "last anchors"):
            self._start_at(0)
            for before in range(kept, 0, -1):
                reached = {dtype: np.empty_like(buffer.anchor(0)) for dtype, buffer in self._buffers.items()}
                self._copy(self._length - before, reached)
                for dtype, buffer in self._buffers.items():
                    if not np.array_equal(reached[dtype], buffer.anchor(2 * self._order - before)):
                        raise LogCorruptError(
                            f"{self._path}: an anchor of {dtype} differs from the last states; restore the file from a "
                            "copy"
                        )

    def _read(self, row: int, patterns: dict[str, np.ndarray]) -> None:
        if self._order:
            self._go_near(row)
            self._copy(row, patterns)
            return
        for dtype, buffer in self._buffers.items():
            buffer.read(row, patterns[dtype], backwards=self._position is not None and row < self._position)
        self._position = row

    def _place(self, row: int) -> int:
        """Return the state to step to for a state. With second differences that is the one before it, from which it is
        known as the one that follows: so it takes no row that says anything of later states."""
        return max(0, row + 1 - self._order)

    def _go_near(self, row: int) -> None:
        """Be where the walk to a state is short."""
        place, last, far = self._place(row), self._place(self._length - 1), self._length + 1
        here = far if self._position is None else abs(place - self._position)
        from_last = last - place if self._sealed else far
        if here > min(place, from_last):
            self._start_at(0 if place < from_last else last)

    def _start_at(self, place: int) -> None:
        self._position = None
        for buffer in self._buffers.values():
            buffer.start(0 if place == 0 else self._order)
        self._position = place

    def _copy(self, row: int, patterns: dict[str, np.ndarray]) -> None:
        """Step to a state and copy it."""
        target = self._place(row)
        position, self._position = self._position, None
        assert position is not None
        for dtype, buffer in self._buffers.items():
            for between in range(position - 1, target - 1, -1):
                buffer.cursor.step_back(buffer.row(between, backwards=True))
            for between in range(position, target):
                buffer.cursor.step_forward(buffer.row(between, backwards=False))
            if row == target:
                patterns[dtype][:] = buffer.cursor.value
            else:
                buffer.cursor.next_patterns(out=patterns[dtype])
        self._position = target


class _BufferReader:
    """Rows of one flat buffer; small ones are read several at a time."""

    cursor: DeltaCursor

    def __init__(self, file: ReadHdf5, dtype: str, words: int, codec: Codec, length: int, sealed: bool) -> None:
        kind = word_type(dtype)
        self._order = codec.order
        self._known = min(codec.order, length)
        self._anchors = None
        if codec.order:
            whole = sealed and length >= codec.order  # otherwise some anchors were never written
            self._anchors = checked_dataset(file, f"anchor/{dtype}", kind.plain, words, sealed=whole)
            if len(self._anchors) != 2 * codec.order:
                raise ValueError(f"anchor/{dtype} has {len(self._anchors)} rows, expected {2 * codec.order}")
        stored = kind.pattern if codec.order else np.dtype(kind.plain)
        self._dataset = checked_dataset(file, f"state/{dtype}", stored.str, words, sealed=sealed, filters=codec.filters)
        self._frames = Frames(self._dataset, file.fileno())
        self.rows = int(self._dataset.shape[0])
        if sealed and self.rows != max(0, length - codec.order):
            raise ValueError(f"state/{dtype} has {self.rows} rows, expected {max(0, length - codec.order)}")
        self._pattern = kind.pattern
        self._ahead = max(1, min(64, _READ_AHEAD_BYTES // (words * kind.pattern.itemsize)))
        self._buffer = np.empty((self._ahead, words), stored)
        self._start = self._stop = 0

    def anchor(self, which: int) -> np.ndarray:
        """Return a copy of an anchor."""
        assert self._anchors is not None
        return np.ascontiguousarray(self._anchors[which]).view(self._pattern)

    def start(self, which: int) -> None:
        """Step from the first anchors (0) or from the last (``Codec.order``)."""
        self.cursor = DeltaCursor([self.anchor(which + place) for place in range(self._known)])

    def read(self, row: int, out: np.ndarray, *, backwards: bool) -> None:
        """Read one row as patterns into ``out``."""
        if self._ahead == 1 and row < self.rows:
            self._frames.check(row, row + 1)
            read_rows(self._dataset, row, out.view(self._dataset.dtype)[None])
        else:
            out[:] = self.row(row, backwards=backwards)

    def row(self, row: int, *, backwards: bool) -> np.ndarray:
        """Return one row as patterns; valid until the next call."""
        if not self._start <= row < self._stop:
            start = max(0, row + 1 - self._ahead) if backwards else row
            stop = row + 1 if backwards else min(self.rows, row + self._ahead)
            if not 0 <= start < stop <= self.rows:
                raise IndexError(f"row {row} of {self.rows}")
            self._start = self._stop = 0
            self._frames.check(start, stop)
            read_rows(self._dataset, start, self._buffer[: stop - start])
            self._start, self._stop = start, stop
        return self._buffer[row - self._start].view(self._pattern)
