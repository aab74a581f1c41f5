"""Write the rows of stored states, one flat buffer each: absolute patterns, or differences between absolute anchors."""

from __future__ import annotations

from collections import deque

import h5py
import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.log.bit_patterns import row_bytes, word_counts, word_type
from lightning_sgdinf.log.codecs import Codec
from lightning_sgdinf.log.delta_coding import encode_difference
from lightning_sgdinf.log.hdf5 import Growing, dataset, read_rows
from lightning_sgdinf.state import Layout

_CHUNK_WORDS = 262_144
_FILTERED_FROM_BYTES = 4096
_SMALL_CHUNK_BYTES = 2048
_BLOCK_BYTES = 1 << 20
_MAX_BLOCK_ROWS = 16


class BufferRows:
    """The rows of one flat buffer in a segment being written.

    Small rows are gathered and written several at a time, large ones chunk by chunk, so that no copy of a whole one is
    needed. What was handed over is remembered by its checksum, for `check`.

    Args:
        file: A segment in which `create` has made the datasets.
        dtype: Name of the flat buffer.
        order: Of the differences.
        block: Rows that are written together.
    """

    def __init__(self, file: h5py.File, dtype: str, order: int, block: int) -> None:
        kind = word_type(dtype)
        self._name = dtype
        self._order = order
        self._dataset = dataset(file, f"state/{dtype}")
        self._anchors = dataset(file, f"anchor/{dtype}") if order else None
        self._rows = Growing(self._dataset)
        self._words = int(self._dataset.shape[1])
        self._width = self._words if block > 1 else int((self._dataset.chunks or (1, self._words))[1])
        self._block = np.empty((block, self._width), kind.pattern)
        self._filled = self._states = self._crc = 0
        self._anchor_crcs: dict[int, int] = {}
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
        if len(patterns) != self._words:
            raise ValueError(f"a flat buffer has {len(patterns)} words, its layout {self._words}")
        if self._states < self._order:  # the first states are anchors, and have no row
            self._write_anchor(self._states, patterns)
        elif len(self._block) > 1:
            self._encode(patterns, 0, self._block[self._filled])
            self._filled += 1
            if self._filled == len(self._block):
                self.flush()
        else:
            self._write_in_parts(patterns)
        self._states += 1
        self._last.append(patterns)

    def flush(self) -> None:
        """Write the rows that wait."""
        rows = self._block[: self._filled]
        self._crc = crc32(rows.reshape(-1).view(np.uint8).data, self._crc) if self._filled else self._crc
        self._rows.append(rows.view(self._rows.dtype))
        self._filled = 0

    def write_last_anchors(self) -> None:
        """Write the newest states, absolute: there readers that go backwards begin."""
        # The second half of the anchors, filled from its end: a segment may have fewer states than anchors.
        for place, patterns in enumerate(self._last, start=2 * self._order - len(self._last)):
            self._write_anchor(place, patterns)

    def check(self, file: h5py.File) -> None:
        """Compare a file with all that was handed over.

        Args:
            file: The segment, opened again.

        Raises:
            ValueError: It differs.
        """
        stored, crc = dataset(file, f"state/{self._name}"), 0
        if stored.shape != (self._rows.length, self._words):
            raise ValueError(f"{self._rows.length} rows of {self._name} were written, {stored.shape[0]} are there")
        for row in range(0, self._rows.length, len(self._block)):
            crc = self._checksum(stored, row, min(len(self._block), self._rows.length - row), crc)
        if crc != self._crc:
            raise ValueError(f"the rows of {self._name} are not those that were written")
        for place, written in self._anchor_crcs.items():
            if self._checksum(dataset(file, f"anchor/{self._name}"), place, 1, 0) != written:
                raise ValueError(f"an anchor of {self._name} is not the one that was written")

    def _checksum(self, stored: h5py.Dataset, row: int, rows: int, crc: int) -> int:
        """Return the CRC-32 of some rows as they are stored, after what has that checksum."""
        for column in range(0, self._words, self._width):
            part = np.empty((rows, min(self._width, self._words - column)), stored.dtype)
            read_rows(stored, row, part, column)
            crc = crc32(part.reshape(-1).view(np.uint8).data, crc)
        return crc

    def _encode(self, patterns: np.ndarray, start: int, out: np.ndarray) -> None:
        """Compute the words of a row from ``start`` on."""
        stop = start + len(out)
        if self._order:
            encode_difference([state[start:stop] for state in (*self._last, patterns)], out)
        else:
            out[:] = patterns[start:stop]

    def _write_in_parts(self, patterns: np.ndarray) -> None:
        row = self._rows.length
        self._rows.resize(row + 1)
        for start in range(0, self._words, self._width):
            part = self._block[0, : self._words - start]
            self._encode(patterns, start, part)
            self._crc = crc32(part.view(np.uint8).data, self._crc)
            self._rows.write(row, start, part.view(self._rows.dtype)[None])

    def _write_anchor(self, place: int, patterns: np.ndarray) -> None:
        assert self._anchors is not None
        self._anchor_crcs[place] = crc32(patterns.view(np.uint8).data)
        self._anchors[place] = patterns.view(self._anchors.dtype)


def create_rows(file: h5py.File, layout: Layout, codec: Codec) -> None:
    """Make the datasets of all flat buffers; those without elements have none."""
    for dtype, words in word_counts(layout).items():
        if words:
            BufferRows.create(file, dtype, words, codec)


def rows_of(file: h5py.File, layout: Layout, codec: Codec) -> dict[str, BufferRows]:
    """Return the rows of all flat buffers of a segment in which they have been made."""
    block = max(1, min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // max(1, row_bytes(layout))))
    return {dtype: BufferRows(file, dtype, codec.order, block) for dtype, n in layout.buffer_sizes.items() if n}
