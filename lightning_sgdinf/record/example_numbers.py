"""Ids of the examples of data that change: other data under the same indices are other examples.

An index is an id as long as the data are those that the run began with. When they are others, made anew for an epoch or
changed in place, examples are known again by their content: the second of two equal ones is the second there, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset
from zlib_ng.zlib_ng import crc32

_SAMPLED = 1 << 20  # numbers of a tensor, and entries of a list, that are looked at
_DEPTH = 4


class ExampleNumbers:
    """Gives examples their ids; those of other data that it does not know yet are numbered on."""

    def __init__(self) -> None:
        self._next = 0
        self._ids: dict[int, dict[int, int]] = {}
        self._alike: dict[bytes, list[int]] = {}

    def begin(self, examples: int) -> None:
        """Number on from there at least."""
        self._next = max(self._next, examples)

    def ids(self, version: int, indices: Sequence[int], batch: Any) -> np.ndarray | None:
        """Return the ids of a batch, int64 ``[B]``; ``None`` if its examples cannot be told apart.

        Args:
            version: Of the data: 0 for those that the run began with, another number for each change.
            indices: That the data set was asked for.
            batch: What came of them.
        """
        known = self._ids.setdefault(version, {})
        if any(index not in known for index in indices):
            digests = row_digests(batch, len(indices))
            if digests is None and version:
                return None
            taken = set(known.values())
            for index, digest in zip(indices, digests or [b""] * len(indices), strict=True):
                if index not in known:
                    known[index] = number = index if not version else self._number(digest, taken)
                    taken.add(number)
                    if digest and number not in (alike := self._alike.setdefault(digest, [])):
                        alike.append(number)
                    self._next = max(self._next, number + 1)
        return np.array([known[index] for index in indices], np.int64)

    def _number(self, digest: bytes, taken: set[int]) -> int:
        return next((n for n in self._alike.get(digest, ()) if n not in taken), self._next)


def row_digests(batch: Any, count: int) -> list[bytes] | None:
    """Return a digest of each example of a collated batch; ``None`` if nothing in it has a row for each."""
    hashes = [blake2b(digest_size=16) for _ in range(count)]
    told = False
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.ndim and len(leaf) == count:
            rows = leaf.detach().cpu().contiguous().view(count, -1)
            values = rows.view(torch.uint8).numpy() if rows.numel() else np.empty((count, 0), np.uint8)
        elif isinstance(leaf, np.ndarray) and leaf.ndim and len(leaf) == count and leaf.dtype.kind not in "OM":
            values = np.ascontiguousarray(leaf).reshape(count, -1).view(np.uint8)
        else:
            continue
        told = True
        for own, row in zip(hashes, values, strict=True):
            own.update(row.tobytes())
    return [own.digest() for own in hashes] if told else None


def data_fingerprint(dataset: Any) -> int | None:
    """Return a checksum of the tensors, arrays and lists that a data set keeps; ``None`` if it keeps none.

    Of large ones a part is read. Generators, counters, caches and whatever is private may change without the data
    changing, and do not count.
    """
    parts: list[bytes] = []
    _collect(dataset, parts, _DEPTH)
    return crc32(b"".join(parts)) if parts else None


def _collect(value: Any, parts: list[bytes], depth: int) -> None:
    if isinstance(value, Tensor):
        if value.layout is torch.strided and not value.is_quantized and not value.is_meta and value.numel():
            flat = value.detach().reshape(-1)[:: max(1, value.numel() // _SAMPLED)].cpu().contiguous()
            parts.append(f"{value.dtype}{tuple(value.shape)}".encode() + _crc(flat.view(torch.uint8).numpy().data))
    elif isinstance(value, np.ndarray):
        if value.dtype.kind != "O" and value.size:
            flat = np.ascontiguousarray(value.reshape(-1)[:: max(1, value.size // _SAMPLED)])
            parts.append(f"{value.dtype}{value.shape}".encode() + _crc(flat.view(np.uint8).data))
    elif isinstance(value, (list, tuple, range)):
        sample = value[:: max(1, len(value) // _SAMPLED)]
        if all(isinstance(v, (int, float, str)) for v in sample):
            parts.append(f"{len(value)}".encode() + _crc(repr(list(sample)).encode()))
        elif depth and len(value) <= _MEMBERS:
            for member in value:
                _collect(member, parts, depth - 1)
    elif depth and isinstance(value, Dataset):
        attributes = vars(value) if hasattr(value, "__dict__") else {}
        for name in sorted(n for n in attributes if not n.startswith("_") and not isinstance(attributes[n], Mapping)):
            _collect(attributes[name], parts, depth - 1)


_MEMBERS = 64  # of a list of tensors or data sets


def _crc(data: Any) -> bytes:
    return crc32(data).to_bytes(4, "little")
