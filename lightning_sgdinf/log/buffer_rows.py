"""Write the rows of stored states, one flat buffer each: absolute patterns, or differences between absolute anchors."""

from __future__ import annotations

from collections import deque

import h5py
import numpy as np

from lightning_sgdinf.log.bit_patterns import row_bytes, word_counts, word_type
from lightning_sgdinf.log.codecs import Codec
from lightning_sgdinf.log.delta_coding import DeltaCursor, encode_difference
from lightning_sgdinf.log.hdf5 import Growing, dataset
from lightning_sgdinf.state import Layout

_CHUNK_WORDS = 262_144
_FILTERED_FROM_BYTES = 4096
_SMALL_CHUNK_BYTES = 2048
_BLOCK_BYTES = 1 << 20
_MAX_BLOCK_ROWS = 16


class BufferRows:
    """The rows of one flat buffer in a segment being written.

    Args:
        file: A segment in which `create` has made the datasets.
        dtype: Name of the flat buffer.
        order: Of the differences.
        block: Rows that are written together.
    """

    def __init__(self, file: h5py.File, dtype: str, order: int, block: int) -> None:
        kind = word_type(dtype)
        self._plain = np.dtype(kind.plain)
        self._order = order
        self._dataset = dataset(file, f"state/{dtype}")
        self._anchors = dataset(file, f"anchor/{dtype}") if order else None
        self._rows = Growing(self._dataset)
        self._block = np.empty((block, self._dataset.shape[1]), kind.pattern)
        self._filled = self._states = 0
        self._last: deque[np.ndarray] = deque(maxlen=order)

    @staticmethod
    def create(file: h5py.File, dtype: str, words: int, codec: Codec) -> None:
        """Make the datasets of a flat buffer.

        Args:
            file: A segment that is being made.
            dtype: Name of the flat buffer.
            words: Words of a state.
            codec: Of the rows.
        """
        kind = word_type(dtype)
        stored = kind.pattern if codec.order else np.dtype(kind.plain)
        filtered = bool(codec.filter) and words * stored.itemsize >= _FILTERED_FROM_BYTES
        rows = 1 if filtered else max(1, _SMALL_CHUNK_BYTES // (words * stored.itemsize))
        parts = -(-words // _CHUNK_WORDS)
        chunks = (rows, -(-words // parts))  # equal parts: a chunk at the edge is stored whole
        file.create_dataset(
            f"state/{dtype}",
            (0, words),
            maxshape=(None, words),
            chunks=chunks,
            dtype=stored,
            track_times=False,
            **(codec.filter if filtered else {}),
        )
        if codec.order:
            file.create_dataset(
                f"anchor/{dtype}", (2 * codec.order, words), chunks=(1, chunks[1]), dtype=kind.plain, track_times=False
            )

    @property
    def written(self) -> int:
        """Rows handed to HDF5."""
        return self._rows.length

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        anchors = 0 if self._anchors is None else self._anchors.id.get_storage_size()
        return self._dataset.id.get_storage_size() + anchors

    def add(self, patterns: np.ndarray) -> None:
        """Add the next stored state; its memory must stay as it is while it is one of the last `Codec.order`."""
        if len(patterns) != self._block.shape[1]:
            raise ValueError(f"a flat buffer has {len(patterns)} words, its layout {self._block.shape[1]}")
        if self._anchors is None:
            self._block[self._filled] = patterns
        elif self._states < self._order:  # the first states are anchors, and have no row
            self._anchors[self._states] = patterns.view(self._plain)
        else:
            encode_difference((*self._last, patterns), self._block[self._filled])
        if self._states >= self._order:
            self._filled += 1
        self._states += 1
        self._last.append(patterns)
        if self._filled == len(self._block):
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        self._rows.append(self._block[: self._filled].view(self._rows.dtype))
        self._filled = 0

    def write_last_anchors(self) -> None:
        """Write the newest states, absolute: there readers that go backwards begin."""
        if self._anchors is not None:
            # The second half of the anchors, filled from its end: a segment may have fewer states than anchors.
            for place, patterns in enumerate(self._last, start=2 * self._order - len(self._last)):
                self._anchors[place] = patterns.view(self._plain)

    def shrink(self, rows: int, states: int) -> None:
        """Go back to that many rows, which belong to that many states."""
        self._filled, self._states = 0, states
        self._rows.resize(rows)
        if self._anchors is not None:
            self._last = deque(self._read_last(rows, states), maxlen=self._order)

    def _read_last(self, rows: int, states: int) -> list[np.ndarray]:
        assert self._anchors is not None
        first = [self._anchors[place].view(self._block.dtype) for place in range(min(states, self._order))]
        if states < self._order:
            return first
        cursor = DeltaCursor(first)
        for row in range(rows):
            cursor.step_forward(self._dataset[row])
        return [cursor.value] if self._order == 1 else [cursor.value, cursor.next_patterns()]


def create_rows(file: h5py.File, layout: Layout, codec: Codec) -> None:
    """Make the datasets of all flat buffers; those without elements have none."""
    for dtype, words in word_counts(layout).items():
        if words:
            BufferRows.create(file, dtype, words, codec)


def rows_of(file: h5py.File, layout: Layout, codec: Codec) -> dict[str, BufferRows]:
    """Return the rows of all flat buffers of a segment in which they have been made."""
    block = max(1, min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // max(1, row_bytes(layout))))
    return {dtype: BufferRows(file, dtype, codec.order, block) for dtype, n in layout.buffer_sizes.items() if n}
