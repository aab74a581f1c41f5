"""Make the file of a killed writer readable.

An HDF5 file that was open for writing says so in its first 48 bytes, and its recorded end may lag behind the data that
was flushed; readers then refuse it. The usual tools cut such a file at the stale end. Setting the end to the size the
file has, and the flags to zero, loses nothing.

Layout (HDF5 file format specification, superblock versions 2 and 3): signature 8, version 1, size of offsets 1, size of
lengths 1, consistency flags 1, base address 8, extension address 8, end of file 8, root group 8, checksum 4.
"""

from __future__ import annotations

import struct

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZE = 48
_CHECKED, _FLAGS, _BASE, _END = 44, 11, 12, 28
_MASK = 0xFFFFFFFF
_MISSING_BYTES = 16 << 20  # of a tail, at most


def check(block: bytes) -> None:
    """Check a superblock: as new as those of logs, at the beginning of the file, and so are all addresses counted.

    Args:
        block: The first bytes of the file.

    Raises:
        ValueError: It is none, or another.
    """
    if len(block) < SIZE or not block.startswith(_SIGNATURE) or block[8] not in (2, 3):
        raise ValueError("no HDF5 superblock of version 2 or 3")
    if struct.unpack_from("<I", block, _CHECKED)[0] != lookup3(block[:_CHECKED]):
        raise ValueError("the superblock differs from its checksum")
    if struct.unpack_from("<Q", block, _BASE)[0]:
        raise ValueError("its addresses are counted from elsewhere than its beginning")


def repaired(block: bytes, size: int) -> tuple[bytes, int]:
    """Return the superblock with clear consistency flags and the right end of file, and that end.

    A tail that is missing is to be read as zeros, which the checksums of the log judge.

    Args:
        block: The first bytes of the file.
        size: Bytes of the file.

    Raises:
        ValueError: Its superblock is not one that can be repaired.
    """
    check(block)
    changed = bytearray(block[:SIZE])
    end = min(max(size, struct.unpack_from("<Q", changed, _END)[0]), size + _MISSING_BYTES)
    struct.pack_into("<Q", changed, _END, end)
    changed[_FLAGS] = 0
    struct.pack_into("<I", changed, _CHECKED, lookup3(bytes(changed[:_CHECKED])))
    return bytes(changed), end


def lookup3(data: bytes) -> int:
    """Return Bob Jenkins' ``hashlittle`` from 0, HDF5's checksum of metadata (burtleburtle.net/bob/c/lookup3.c)."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    words = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data + b"\0" * (-len(data) % 12))
    for i in range(0, len(words) - 3, 3):
        a, b, c = (a + words[i]) & _MASK, (b + words[i + 1]) & _MASK, (c + words[i + 2]) & _MASK
        a, c = (a - c) & _MASK ^ _rotate(c, 4), (c + b) & _MASK
        b, a = (b - a) & _MASK ^ _rotate(a, 6), (a + c) & _MASK
        c, b = (c - b) & _MASK ^ _rotate(b, 8), (b + a) & _MASK
        a, c = (a - c) & _MASK ^ _rotate(c, 16), (c + b) & _MASK
        b, a = (b - a) & _MASK ^ _rotate(a, 19), (a + c) & _MASK
        c, b = (c - b) & _MASK ^ _rotate(b, 4), (b + a) & _MASK
    a, b, c = (a + words[-3]) & _MASK, (b + words[-2]) & _MASK, (c + words[-1]) & _MASK
    c = ((c ^ b) - _rotate(b, 14)) & _MASK
    a = ((a ^ c) - _rotate(c, 11)) & _MASK
    b = ((b ^ a) - _rotate(a, 25)) & _MASK
    c = ((c ^ b) - _rotate(b, 16)) & _MASK
    a = ((a ^ c) - _rotate(c, 4)) & _MASK
    b = ((b ^ a) - _rotate(a, 14)) & _MASK
    return ((c ^ b) - _rotate(b, 24)) & _MASK


def _rotate(x: int, k: int) -> int:
    return (x << k | x >> (32 - k)) & _MASK
