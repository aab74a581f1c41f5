"""A collated batch as bytes and back: nested containers of tensors, arrays and plain values, nothing that runs code.

Section 9 of the format's specification says what the bytes are.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.documents import from_json, to_json

_ALIGNED = 8
_PLAIN = (type(None), bool, int, float, str)
_DICTS = (dict, OrderedDict, defaultdict)
_ARRAY_KINDS = "biufc"


def encode_batch(batch: Any) -> bytes:
    """Return a batch as bytes that share no memory with it.

    Raises:
        TypeError: It holds something that is no tensor, array, plain value, or list, tuple or dict of such; says what
            and where.
    """
    parts: list[Any] = []
    document = to_json(_Encoder(parts).value(batch, "batch"))
    head = len(document).to_bytes(4, "little") + document
    data = bytearray(_aligned(len(head)) + sum(_aligned(len(p)) for p in parts))
    data[: len(head)] = head
    place = _aligned(len(head))
    for part in parts:
        data[place : place + len(part)] = part
        place += _aligned(len(part))
    return bytes(data)


def decode_batch(data: bytes) -> Any:
    """Return the batch of some bytes, in memory of its own.

    Raises:
        LogCorruptError: They are not a batch.
    """
    try:
        length = int.from_bytes(data[:4], "little")
        document = from_json(data[4 : 4 + length])
        return _Decoder(bytearray(data[_aligned(4 + length) :])).value(document)
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise LogCorruptError(
            f"a stored batch cannot be read ({type(error).__name__}: {error}); restore the log from a copy"
        ) from error


def row_count(batch: Any) -> int | None:
    """Return the leading dimension of the first tensor or array of a batch; ``None`` if there is none."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim:
            return len(leaf)
    return None


def first_row_only(data: bytes) -> bytes:
    """Return an encoded batch in which every row is the first."""
    batch = decode_batch(data)
    rows = row_count(batch)
    return encode_batch(
        tree_map_only((Tensor, np.ndarray), lambda v: v[[0] * len(v)] if v.ndim and len(v) == rows else v, batch)
    )


class _Encoder:
    """Turns values into a document; the values of tensors go aside."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts
        self._end = 0

    def value(self, value: Any, where: str) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, where)}
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _ARRAY_KINDS:
            little = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return {kind: [little_name(value.dtype), list(value.shape), self._aside(little)]}
        if type(value) is bytes:
            return {"bytes": [len(value), self._aside(value)]}
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            return {type(value).__name__: [self.value(v, f"{where}[{i}]") for i, v in enumerate(value)]}
        fields = getattr(value, "_fields", None)
        if isinstance(value, tuple) and isinstance(fields, tuple):
            entries = [self.value(v, f"{where}.{n}") for n, v in zip(fields, value, strict=True)]
            return {"namedtuple": [type(value).__name__, list(fields), entries]}
        if isinstance(value, dict) and type(value) in _DICTS:
            return {"dict": [[self.value(k, where), self.value(v, f"{where}[{k!r}]")] for k, v in value.items()]}
        raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}")

    def _tensor(self, value: Tensor, where: str) -> list[Any]:
        if value.layout is not torch.strided or value.is_quantized:
            raise TypeError(f"{where} is a tensor that is sparse or quantized")
        data = value.detach().cpu().contiguous().reshape(-1)
        place = self._aside(data.view(torch.uint8).numpy().data if data.numel() else b"")
        return [dtype_name(value.dtype), list(value.shape), place]

    def _aside(self, part: Any) -> int:
        """Return the place that a part will have, counted from the end of the document."""
        start, self._end = self._end, self._end + _aligned(len(part))
        self._parts.append(part)
        return start


class _Decoder:
    """Turns a document into values."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def value(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind == "tensor":
            return self._tensor(*content)
        if kind in ("array", "scalar"):
            array = self._array(*content)
            return array if kind == "array" else array[()]
        if kind == "bytes":
            length, start = content
            return bytes(self._slice(start, length))
        if kind in ("list", "tuple"):
            entries = [self.value(v) for v in content]
            return entries if kind == "list" else tuple(entries)
        if kind == "namedtuple":
            name, fields, entries = content
            return namedtuple(name, fields)(*[self.value(v) for v in entries])
        if kind == "dict":
            return {self.value(k): self.value(v) for k, v in content}
        raise ValueError(f"a value of kind {kind!r}")

    def _tensor(self, name: str, shape: list[int], start: int) -> Tensor:
        dtype = getattr(torch, name)
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{name} is no dtype")
        count = _count(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        self._slice(start, count * dtype.itemsize)
        return torch.frombuffer(self._data, dtype=dtype, count=count, offset=start).view(shape)

    def _array(self, name: str, shape: list[int], start: int) -> np.ndarray:
        dtype = np.dtype(name)
        if dtype.kind not in _ARRAY_KINDS:
            raise TypeError(f"{name} is no type of numbers")
        count = _count(shape)
        return np.frombuffer(self._slice(start, count * dtype.itemsize), dtype, count).reshape(shape)

    def _slice(self, start: int, length: int) -> memoryview:
        if not 0 <= start <= start + length <= len(self._data):
            raise ValueError(f"bytes {start} to {start + length} of {len(self._data)}")
        return memoryview(self._data)[start : start + length]


def little_name(dtype: np.dtype) -> str:
    """Return the name of a type in little-endian order: ``np.dtype(">f4")`` -> ``"<f4"``."""
    return dtype.newbyteorder("<").str


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        if size < 0:
            raise ValueError(f"shape {shape}")
        count *= size
    return count


def _aligned(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED
