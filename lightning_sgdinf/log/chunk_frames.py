"""Compare what a compressed chunk says of its own size with the size it must have, before it is decompressed.

A filter of HDF5 makes as much room as the head of a chunk asks for, whatever the dataset's chunks are. A chunk of a log
is as large as its dataset says, to the byte, and has the one form that its writer gives it, so both are demanded first.

Heads: c-blosc 1 (version 1, version of the codec 1, flags 1, size of an element 1, bytes 4, bytes of a block 4,
compressed bytes 4), Zstandard (RFC 8878, section 3.1.1.1).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import h5py

from lightning_sgdinf.log.codecs import BLOSC, ZSTD

_HEAD_BYTES = 18
_BLOSC_HEAD, _BLOSC_FORMAT, _BLOSC_LZ4 = struct.Struct("<4B3I"), 2, 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SIZES = ((0, 1), (1, 2), (2, 4), (3, 8))  # code in the descriptor, bytes of the field


class Frames:
    """The heads of the chunks of a dataset.

    Args:
        stored: The dataset.
        descriptor: Of its file.
    """

    def __init__(self, stored: h5py.Dataset, descriptor: int) -> None:
        self._wrong: list[tuple[int, int, str]] = []  # first row, first row after it, reason
        properties = stored.id.get_create_plist()
        chunks = stored.chunks
        if chunks is None or not (filters := properties.get_nfilters()):
            return
        size_of = _SIZES[properties.get_filter(filters - 1)[0]]
        rows, end = chunks[0], os.fstat(descriptor).st_size
        expected = prod(chunks) * stored.dtype.itemsize

        def look(info: Any) -> None:
            if info.filter_mask >> (filters - 1):  # stored as it is
                size = info.size
            else:
                head = os.pread(descriptor, min(_HEAD_BYTES, info.size), info.byte_offset)
                size = size_of(head, info.size)
            first = int(info.chunk_offset[0])
            if size != expected:
                self._wrong.append((first, first + rows, f"a chunk says that it has {size} bytes, not {expected}"))
            elif info.byte_offset + info.size > end:
                self._wrong.append((first, first + rows, "a chunk lies beyond the end of the file"))

        stored.id.chunk_iter(look)

    def check(self, start: int, stop: int) -> None:
        """Check the chunks of rows ``start .. stop - 1``, before these are read.

        Raises:
            ValueError: A chunk says another size than it must have, has a form that no log has, or is not there.
        """
        for first, after, reason in self._wrong:
            if first < stop and start < after:
                raise ValueError(reason)


def _blosc_size(head: bytes, stored: int) -> int | None:
    """Return the bytes that a chunk of Blosc stands for; ``None`` if it is none, or none of LZ4."""
    if len(head) < _BLOSC_HEAD.size:
        return None
    version, _, flags, _, size, block, compressed = _BLOSC_HEAD.unpack_from(head)
    whole = version == _BLOSC_FORMAT and flags >> 5 == _BLOSC_LZ4 and compressed == stored and 0 < block <= size
    return size if whole else None


def _zstd_size(head: bytes, stored: int) -> int | None:
    """Return the bytes that a frame of Zstandard stands for; ``None`` if it is none, or does not say."""
    del stored
    if len(head) < 6 or not head.startswith(_ZSTD_MAGIC):
        return None
    descriptor = head[4]
    single, dictionary = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    width = dict(_ZSTD_SIZES)[descriptor >> 6] if descriptor >> 6 or single else 0
    start = 5 + (not single) + dictionary
    if not width or len(head) < start + width:
        return None
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)


_SIZES: Mapping[int, Callable[[bytes, int], int | None]] = {BLOSC: _blosc_size, ZSTD: _zstd_size}
