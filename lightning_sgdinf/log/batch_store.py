"""Collated batches kept in a segment, for data that cannot be made again.

A batch is a byte string that its step's document gives length and checksum of. It begins a chunk of its own, so that a
chunk is written once and never grows, which is what lets it be compressed while others read; the rest of its last chunk
is zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.chunk_frames import Frames
from lightning_sgdinf.log.codecs import ZSTD
from lightning_sgdinf.log.hdf5 import Growing, ReadHdf5, checked_dataset, dataset, reading
from lightning_sgdinf.log.step_documents import BatchEntry

_MIN_CHUNK, _MAX_CHUNK = 4 << 10, 256 << 10
_LARGEST_CHUNK = 1 << 20  # that is read


class BatchWriter:
    """The batches of a segment being written.

    Args:
        file: A segment in which `create` has made their dataset.
    """

    def __init__(self, file: h5py.File) -> None:
        stored = dataset(file, "batch")
        self._chunk = (stored.chunks or (_MIN_CHUNK,))[0]
        self._bytes = Growing(stored)
        self._crc = 0

    @staticmethod
    def create(file: h5py.File, like: int) -> None:
        """Make the dataset.

        Args:
            file: A segment that is being made.
            like: Bytes of its first batch, to choose the chunk by.
        """
        chunk = min(_MAX_CHUNK, max(_MIN_CHUNK, 1 << max(0, like - 1).bit_length()))  # the next power of two
        file.create_dataset(
            "batch",
            (0,),
            maxshape=(None,),
            chunks=(chunk,),
            dtype="|u1",
            track_times=False,
            **hdf5plugin.Zstd(clevel=1),
        )

    @property
    def length(self) -> int:
        """Bytes of all batches, padding included."""
        return self._bytes.length

    def add(self, batches: tuple[bytes, ...]) -> None:
        """Add the batches of the next step."""
        for data in batches:
            # Rounded up to whole chunks: the next batch begins a chunk of its own.
            padded = np.zeros(-(-len(data) // self._chunk) * self._chunk, np.uint8)
            padded[: len(data)] = np.frombuffer(data, np.uint8)
            self._crc = crc32(padded.data, self._crc)
            self._bytes.append(padded)

    def check(self, file: h5py.File) -> None:
        """Compare a file with all that was handed over.

        Args:
            file: The segment, opened again.

        Raises:
            ValueError: It differs.
        """
        stored, crc = dataset(file, "batch"), 0
        if len(stored) == self._bytes.length:
            for start in range(0, len(stored), _LARGEST_CHUNK):
                crc = crc32(stored[start : start + _LARGEST_CHUNK].data, crc)
        if crc != self._crc:
            raise ValueError("the batches are not those that were written")


class BatchReader:
    """The batches of a segment.

    Args:
        file: Open segment.
        path: Its path, for errors.
        first: Number of its first step.
        ends: Byte at which the batches of each step end, 0 first.
    """

    def __init__(self, file: ReadHdf5, path: Path, first: int, ends: Sequence[int]) -> None:
        self._path, self._first, self._ends = path, first, ends
        self._bytes: h5py.Dataset | None = None
        if "batch" not in file:
            return
        with reading(path, "dataset batch"):
            self._bytes = checked_dataset(file, "batch", "|u1", filters=(ZSTD,), sealed=False)
            self._chunk = int((self._bytes.chunks or (0,))[0])
            if not 0 < self._chunk <= _LARGEST_CHUNK:
                raise ValueError(f"chunks of {self._chunk} bytes")
            self._there = self._chunk * self._bytes.id.get_num_chunks()
            self._frames = Frames(self._bytes, file.fileno())

    def read(self, index: int, entries: tuple[BatchEntry, ...], place: int) -> bytes:
        """Read batch ``place`` of step ``index``.

        Args:
            index: Number of the step.
            entries: Those of its document for all its batches.
            place: Position of the batch among them.

        Raises:
            LogCorruptError: It differs from what was written.
        """
        what = f"batch {place} of step {index}"
        with reading(self._path, what):
            if self._bytes is None:
                raise KeyError("the segment has no batches")
            start, stop = self._ends[index - self._first : index - self._first + 2]
            # Those before it are as long as their chunks, see `BatchWriter.add`.
            start += sum(-(-e.size // self._chunk) * self._chunk for e in entries[:place])
            size = entries[place].size
            if not 0 <= start <= start + size <= stop <= min(len(self._bytes), self._there):
                raise ValueError(f"bytes {start} to {start + size} of {min(stop, self._there)}")
            self._frames.check(start, start + size)
            data = self._bytes[start : start + size].tobytes()
        if crc32(data) != entries[place].crc:
            raise LogCorruptError(f"{self._path}: {what} differs from its checksum; restore the file from a copy")
        return data
