"""A checksum of a batch, the same in recording and replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.batch_structure import attributes_of


def batch_digest(batch: Any, seed: int = 0) -> int:
    """Return the CRC-32 of the structure and the values of a batch.

    Tensors and arrays contribute dtype, shape and bytes; mappings and sequences their items in order; classes,
    functions and members of an Enum their names; dataclass-like objects their attributes; anything else its type name
    and, if it is a string or number, its value.

    Args:
        batch: As a data loader yields it.
        seed: Checksum to continue.

    Returns:
        An integer in ``[0, 2**32)``.
    """
    if isinstance(batch, Tensor):
        data = batch.detach()
        if data.layout is not torch.strided or data.is_quantized:
            data = data.to_dense()
        data = data.cpu().contiguous()
        head = f"{data.dtype}{tuple(data.shape)}".encode()
        return crc32(data.view(-1).view(torch.uint8).numpy().data if data.numel() else b"", crc32(head, seed))
    if isinstance(batch, np.ndarray):
        head = f"{batch.dtype}{batch.shape}".encode()
        return crc32(np.ascontiguousarray(batch).tobytes(), crc32(head, seed))
    if isinstance(batch, (str, bytes, int, float, bool, type(None))):
        return crc32(f"{type(batch).__name__}:{batch!r}".encode(), seed)
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            seed = batch_digest(value, batch_digest(str(key), seed))
        return crc32(b"}", seed)
    if isinstance(batch, Sequence):
        for value in batch:
            seed = batch_digest(value, seed)
        return crc32(b"]", seed)
    if isinstance(batch, (type, Enum, FunctionType, BuiltinFunctionType, MethodType)):
        name = batch.name if isinstance(batch, Enum) else batch.__qualname__
        return crc32(f"{type(batch).__qualname__}:{name}".encode(), seed)
    seed = crc32(type(batch).__qualname__.encode(), seed)
    attributes = attributes_of(batch)
    return batch_digest(attributes, seed) if attributes or hasattr(batch, "__dict__") else seed
