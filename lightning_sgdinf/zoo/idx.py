"""The IDX file format, in which MNIST and its relatives are distributed.

A file starts with two zero bytes, the type of an element (``0x08``: unsigned byte), the number of dimensions, and the
size of each dimension as a big-endian 32-bit integer; the elements follow in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import ConfigurationError

UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Args:
        path: The file; one that is compressed with gzip is recognised by its content, whatever its name.

    Returns:
        A uint8 array with as many dimensions as the file says.

    Raises:
        ConfigurationError: It is not such a file, or holds more or fewer bytes than its head says.
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ConfigurationError(f"{path}: expected a whole gzip file, got a damaged one ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE or data[3] == 0:
        raise ConfigurationError(
            f"{path}: expected an IDX file of unsigned bytes (it starts with 00 00 08), got one that starts with "
            f"{data[:4].hex(' ')}; download it again"
        )
    dimensions = data[3]
    head = 4 + 4 * dimensions
    if len(data) < head:
        raise ConfigurationError(f"{path}: the file ends within its {head}-byte head; download it again")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    if len(data) - head != math.prod(shape):
        raise ConfigurationError(
            f"{path}: expected {math.prod(shape)} elements for shape {shape}, got {len(data) - head}; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape).copy()
