"""The stored states of one segment, bit for bit.

With differences, a state is reached from the nearest of three places: the first anchors, the last anchors, or the state
read before. Walking backwards therefore costs one row per state.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.bit_patterns import to_words, word_type
from lightning_sgdinf.log.checksum import StateChecksum
from lightning_sgdinf.log.codecs import Codec
from lightning_sgdinf.log.differences import Walk
from lightning_sgdinf.log.hdf5 import checked_dataset, read_rows, reading
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
        sealed: Whether there are last anchors.
    """

    def __init__(
        self, file: h5py.File, path: Path, layout: Layout, codec: Codec, length: int, *, sealed: bool = True
    ) -> None:
        self._path, self._layout, self._length, self._sealed = path, layout, length, sealed
        self._order = codec.order
        self._checksum = StateChecksum(layout)
        self._position: int | None = None
        with reading(path, "states"):
            self._lanes = {
                dtype: _LaneReader(file, dtype, n * word_type(dtype).per_element, codec, length, sealed)
                for dtype, n in layout.lanes.items()
                if n and length
            }

    def state(self, row: int, index: int, recorded: int) -> ModelState:
        """A stored state in memory of its own; see `lanes`."""
        return self._layout.unpack(self.lanes(row, index, recorded))

    def lanes(self, row: int, index: int, recorded: int) -> dict[str, Tensor]:
        """A stored state as lanes of its own.

        Args:
            row: Which one.
            index: Its number in the run, for errors.
            recorded: Its checksum.

        Raises:
            LogCorruptError: It differs from its checksum.
        """
        with reading(self._path, f"state {index}"):
            lanes = self._layout.empty()
            words = {dtype: to_words(lane, dtype) for dtype, lane in lanes.items()}
            self._read(row, words)
        if self._checksum.of_words(words) != recorded:
            self._position = None
            raise LogCorruptError(
                f"{self._path}: state {index} differs from its checksum; restore the file from a copy"
            )
        return lanes

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
                found = {dtype: np.empty_like(lane.anchor(0)) for dtype, lane in self._lanes.items()}
                self._copy(self._length - before, found)
                for dtype, lane in self._lanes.items():
                    if not np.array_equal(found[dtype], lane.anchor(2 * self._order - before)):
                        raise LogCorruptError(
                            f"{self._path}: an anchor of {dtype} differs from the last states; restore the file from a "
                            "copy"
                        )

    def _read(self, row: int, words: dict[str, np.ndarray]) -> None:
        if self._order:
            self._go_near(row)
            self._copy(row, words)
            return
        for dtype, lane in self._lanes.items():
            lane.read(row, words[dtype], backwards=self._position is not None and row < self._position)
        self._position = row

    def _place(self, row: int) -> int:
        """Where to walk for a state. With second differences it is known as the one that follows: so it takes no row
        that says anything of later states."""
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
        for lane in self._lanes.values():
            lane.start(0 if place == 0 else self._order)
        self._position = place

    def _copy(self, row: int, words: dict[str, np.ndarray]) -> None:
        """Walk to a state and copy it."""
        target = self._place(row)
        position, self._position = self._position, None
        assert position is not None
        for dtype, lane in self._lanes.items():
            for between in range(position - 1, target - 1, -1):
                lane.walk.back(lane.row(between, backwards=True))
            for between in range(position, target):
                lane.walk.forth(lane.row(between, backwards=False))
            if row == target:
                words[dtype][:] = lane.walk.value
            else:
                lane.walk.following(out=words[dtype])
        self._position = target


class _LaneReader:
    """Rows of one lane; small ones are read several at a time."""

    walk: Walk

    def __init__(self, file: h5py.File, dtype: str, words: int, codec: Codec, length: int, sealed: bool) -> None:
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
        self.rows = int(self._dataset.shape[0])
        if sealed and self.rows != max(0, length - codec.order):
            raise ValueError(f"state/{dtype} has {self.rows} rows, expected {max(0, length - codec.order)}")
        self._pattern = kind.pattern
        self._ahead = max(1, min(64, _READ_AHEAD_BYTES // (words * kind.pattern.itemsize)))
        self._buffer = np.empty((self._ahead, words), stored)
        self._start = self._stop = 0

    def anchor(self, which: int) -> np.ndarray:
        """A copy of an anchor."""
        assert self._anchors is not None
        return np.ascontiguousarray(self._anchors[which]).view(self._pattern)

    def start(self, which: int) -> None:
        """Walk from the first anchors (0) or from the last (``Codec.order``)."""
        self.walk = Walk([self.anchor(which + place) for place in range(self._known)])

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
