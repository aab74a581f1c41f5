"""The IDX file format, in which MNIST and its relatives are distributed.

A file starts with two zero bytes, the type of an element (``0x08``: unsigned byte), the number of dimensions, and the
size of each dimension as a big-endian 32-bit integer; the elements follow in C order.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from lightning_sgdinf.zoo.compressed import damaged, head, read_whole

UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Args:
        path: The file; one that is compressed with gzip or xz is recognised by its content, whatever its name.

    Returns:
        A uint8 array with as many dimensions as the file says.

    Raises:
        ConfigurationError: It is not such a file, or holds more or fewer bytes than its head says; says where.
    """
    data = read_whole(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE or data[3] == 0:
        raise damaged(path, 0, f"expected an IDX file of unsigned bytes, which starts with 00 00 08, got {head(data)}")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise damaged(path, len(data), f"the file ends within its {start}-byte head")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise damaged(
            path,
            min(len(data), start + math.prod(shape)),
            f"expected {math.prod(shape):,} elements for shape {shape}, got {len(data) - start:,}",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
