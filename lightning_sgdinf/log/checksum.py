"""The checksums of a log: of a state and of a step (CRC-32, polynomial of zlib and PNG)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.state import Layout, ModelState


class StateChecksum:
    """CRC-32 of the states of one layout, from their flat buffers.

    The tensors are taken in the order of ``(part, name, key)``, so that the checksum does not depend on the order in
    which a dict happens to hold them. It begins with the names, shapes and dtypes and goes on with the bytes of each
    tensor. Neighbours in that order that also lie side by side are one range of bytes, so that most states take few
    calls of ``crc32``.

    Args:
        layout: Of the states in their flat buffers.
    """

    def __init__(self, layout: Layout) -> None:
        self._seed = _seed(layout)
        self._ranges: list[tuple[str, int, int]] = []  # flat buffer, first byte, byte after the last
        offsets = dict.fromkeys(layout.buffer_sizes, 0)
        places = {}
        for spec in layout.specs:
            width = getattr(torch, spec.dtype).itemsize
            start = offsets[spec.dtype]
            offsets[spec.dtype] = start + spec.numel * width
            places[spec.part, spec.name, spec.key] = (spec.dtype, start, start + spec.numel * width)
        for _, (dtype, start, stop) in sorted(places.items()):
            if self._ranges and self._ranges[-1][0] == dtype and self._ranges[-1][2] == start:
                self._ranges[-1] = (dtype, self._ranges[-1][1], stop)
            elif start < stop:
                self._ranges.append((dtype, start, stop))

    def of_patterns(self, patterns: Mapping[str, np.ndarray]) -> int:
        """Return the checksum of a state given as contiguous arrays of its bit patterns."""
        crc = self._seed
        views = {dtype: array.data.cast("B") for dtype, array in patterns.items() if array.size}
        for dtype, start, stop in self._ranges:
            crc = crc32(views[dtype][start:stop], crc)
        return crc


def state_checksum(state: ModelState) -> int:
    """Return the CRC-32 of any state, comparable with what a log has recorded.

    Args:
        state: On any device.

    Returns:
        An integer in ``[0, 2**32)``. Equal for bit-equal states of the same names, shapes and dtypes.
    """
    crc = _seed(Layout.of(state))
    tensors = {(part, name, key): value for part, name, key, value in state.items()}
    for place in sorted(tensors):
        crc = crc32(_bytes(tensors[place]).data, crc)
    return crc


def step_checksum(
    index: int,
    stored: bool,
    example_ids: Any,
    document: Any,
    blob_checksums: Sequence[int],
    state_crc: int,
) -> int:
    """Return the CRC-32 of all that is recorded of a step; see the specification of the format.

    It runs over, in this order: the number of the step (8 bytes), 1 or 0 for a stored state, the example ids, the
    document, the CRC-32 of each byte string and that of the state before the step (4 bytes each). Numbers are
    little-endian.

    Args:
        index: Number of the step.
        stored: The state before it is stored.
        example_ids: Buffer of little-endian int64.
        document: The step's JSON document.
        blob_checksums: CRC-32 of each byte string the document refers to, in its order.
        state_crc: Checksum of the state before the step.
    """
    crc = crc32(index.to_bytes(8, "little") + bytes((stored,)))
    crc = crc32(document, crc32(example_ids, crc))
    tail = b"".join([c.to_bytes(4, "little") for c in blob_checksums]) + state_crc.to_bytes(4, "little")
    return crc32(tail, crc)


def content_digest(run_id: str, length: int, crc_columns: Sequence[np.ndarray], state_crc: int | None) -> str:
    """Return the SHA-256 of run name, ``T`` (int64), the checksums of the steps and that of the last state (uint32)."""
    digest = hashlib.sha256(run_id.encode() + length.to_bytes(8, "little"))
    for column in crc_columns:
        digest.update(np.ascontiguousarray(column, "<u4").data)
    if state_crc is not None:
        digest.update(state_crc.to_bytes(4, "little"))
    return digest.hexdigest()


def _seed(layout: Layout) -> int:
    rows = sorted([s.part, s.name, s.key, list(s.shape), s.dtype] for s in layout.specs)
    return crc32(json.dumps(rows, separators=(",", ":")).encode())


def _bytes(tensor: Tensor) -> np.ndarray:
    if not tensor.numel():
        return np.empty(0, np.uint8)
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
