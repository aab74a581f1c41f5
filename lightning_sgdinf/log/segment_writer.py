"""Write one segment: a file that readers may look into while it grows, sealed by renaming it.

Every object is made before the file is opened to readers; from then on datasets only grow. The small columns of a step
follow its state, so that a prefix of the file is always whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from lightning_sgdinf.log.batch_store import BatchWriter
from lightning_sgdinf.log.checksum import StateChecksum, step_checksum
from lightning_sgdinf.log.codecs import Codec, encode_difference, step_forth
from lightning_sgdinf.log.directory import SEGMENT_FORMAT, LogDirectory, publish
from lightning_sgdinf.log.documents import layout_to_json
from lightning_sgdinf.log.end_mark import SegmentEntry
from lightning_sgdinf.log.hdf5 import Growing, create_file, discard, write_document
from lightning_sgdinf.log.step_documents import EncodedStep
from lightning_sgdinf.log.words import row_bytes, to_words, word_type
from lightning_sgdinf.state import Layout

COLUMNS: Mapping[str, tuple[str, int]] = {
    "state_index": ("<i8", 128),
    "state_crc": ("<u4", 128),
    "ids": ("<i8", 512),
    "ids_end": ("<i8", 128),
    "step": ("|u1", 4096),
    "step_end": ("<i8", 128),
    "step_blobs": ("<i8", 256),
    "step_blobs_end": ("<i8", 128),
    "blob": ("|u1", 4096),
    "blob_end": ("<i8", 128),
    "crc": ("<u4", 128),
}
"""Vectors of a segment: dtype and chunk length. ``crc`` is written last."""

MAX_STEPS = 4096
_MAX_SIDE_BYTES = 32 << 20
_CHUNK_WORDS = 262_144
_FILTERED_FROM_BYTES = 4096
_SMALL_CHUNK_BYTES = 2048
_BLOCK_BYTES = 1 << 20


class SegmentWriter:
    """One segment being written.

    Args:
        directory: The log.
        first: Number of its first step.
        run_id: Name of the run.
        header: Header document.
        layout: Of all its states.
        groups: Number of param groups of all its steps.
        codec: How states are stored.
        segment_bytes: Bytes of uncompressed states, or of uncompressed batches, after which it is full.
        batch_bytes: Bytes of the first step's batches; 0 if its steps have none.
    """

    def __init__(
        self,
        directory: LogDirectory,
        first: int,
        *,
        run_id: str,
        header: bytes,
        layout: Layout,
        groups: int,
        codec: Codec,
        segment_bytes: int,
        batch_bytes: int = 0,
    ) -> None:
        self.first, self.layout, self.groups, self.steps = first, layout, groups, 0
        self.path = directory.live(first)
        self._directory = directory
        self._codec = codec
        self._checksum = StateChecksum(layout)
        self._pending: dict[str, list[Any]] = {name: [] for name in ("lr", *COLUMNS)}
        self._blobs: dict[bytes, tuple[int, int]] = {}
        self._totals: dict[str, int] = dict.fromkeys(("ids", "step", "step_blobs", "blob"), 0)
        self._crcs: list[int] = []
        self._stored: list[int] = []
        self._segment_bytes = segment_bytes
        self._max_stored = min(MAX_STEPS, max(16, segment_bytes // max(1, row_bytes(layout))))
        self._file = create_file(self.path, SEGMENT_FORMAT)
        try:
            self._file.attrs.update({"first_step": np.int64(first), "run_id": run_id, "codec": codec.name})
            write_document(self._file, "header", header)
            write_document(self._file, "layout", layout_to_json(layout))
            self._lanes, self._columns = _lanes(self._file, layout, codec), _columns(self._file, groups)
            self._batches = BatchWriter(self._file, batch_bytes) if batch_bytes else None
            self._file.flush()
            self._file.swmr_mode = True
        except BaseException:
            discard(self._file)
            self.path.unlink(missing_ok=True)
            raise
        self._safe, self._safe_batches = self._lengths(), self._batches and self._batches.lengths

    @property
    def descriptor(self) -> int:
        """File descriptor that HDF5 writes to."""
        return self._file.id.get_vfd_handle()

    @property
    def has_batches(self) -> bool:
        """Whether batches of its steps are stored."""
        return self._batches is not None

    @property
    def full(self) -> bool:
        """Whether the next step belongs into another segment."""
        side = 8 * self._totals["ids"] + self._totals["step"] + self._totals["blob"]
        batches = 0 if self._batches is None else self._batches.length
        return (
            self.steps >= MAX_STEPS
            or len(self._stored) >= self._max_stored
            or side >= _MAX_SIDE_BYTES
            or batches >= max(self._segment_bytes, _MAX_SIDE_BYTES)
        )

    def add(self, step: EncodedStep, lanes: Mapping[str, Tensor], *, store: bool) -> bool:
        """Add the next step and the state before it.

        Args:
            step: The step.
            lanes: The state.
            store: Keep the state, not only its checksum.

        Returns:
            Whether ``lanes`` are still needed, unchanged, until this method returns so again or the segment is sealed.
        """
        index = self.first + self.steps
        words = {dtype: to_words(lanes[dtype], dtype) for dtype in self.layout.lanes}
        state_crc = self._checksum.of_words(words)
        if store:
            for dtype, rows in self._lanes.items():
                rows.add(words[dtype])
            self._stored.append(index)
            self._pending["state_index"].append(index)
        if self._batches is not None:
            self._batches.add(step.batches)
        blobs = [self._blob(data) for data in step.blobs]
        crc = step_checksum(
            index, store, step.example_ids, step.learning_rates, step.document, [c for _, c in blobs], state_crc
        )
        self._ragged("ids", step.example_ids, len(step.example_ids))
        self._ragged("step", step.document, len(step.document))
        self._ragged("step_blobs", [position for position, _ in blobs], len(blobs))
        self._pending["lr"].append(step.learning_rates)
        self._pending["state_crc"].append(state_crc)
        self._pending["crc"].append(crc)
        self._crcs.append(crc)
        self.steps += 1
        return store and self._codec.differences

    def flush(self, *, durable: bool = False) -> None:
        """Hand everything to the operating system; then it survives the death of the process.

        Args:
            durable: Also wait until it is on the disk; then it survives a power failure.
        """
        for rows in self._lanes.values():
            rows.flush()
        if self._batches is not None:
            self._batches.flush()
        if self._pending["crc"]:
            for name in ("lr", *COLUMNS):
                self._columns[name].append(_joined(name, self._pending[name]))
                self._pending[name].clear()
        self._file.flush()
        if durable:
            os.fsync(self.descriptor)
        self._safe, self._safe_batches = self._lengths(), self._batches and self._batches.lengths

    def seal(self) -> SegmentEntry:
        """Finish the file, give it its final name, and say what it holds."""
        self.flush()
        for rows in self._lanes.values():
            rows.write_last_anchor()
        self._file.flush()
        self._file.close()
        publish(self.path, self._directory.sealed(self.first))
        checksum = zlib.crc32(np.array(self._stored, "<i8").data, zlib.crc32(np.array(self._crcs, "<u4").data))
        return SegmentEntry(self.first, self.steps, checksum)

    def shrink_to_last_flush(self) -> None:
        """Forget what came after the last good flush, so that the rest can be sealed."""
        for name, length in self._safe.items():
            if name in self._columns:
                self._columns[name].resize(length)
        if self._batches is not None and self._safe_batches is not None:
            self._batches.shrink(self._safe_batches)
        for dtype, rows in self._lanes.items():
            rows.shrink(self._safe[f"state/{dtype}"])
        for pending in self._pending.values():
            pending.clear()
        self.steps = self._safe["crc"]
        del self._crcs[self.steps :], self._stored[self._safe["state_index"] :]

    def discard(self) -> None:
        """Close the file under the name it has, whatever HDF5 says, as it is on the disk."""
        discard(self._file)

    def _blob(self, data: bytes) -> tuple[int, int]:
        known = self._blobs.get(data)
        if known is None:
            known = self._blobs[data] = (len(self._blobs), zlib.crc32(data))
            self._ragged("blob", data, len(data))
        return known

    def _ragged(self, name: str, values: Any, length: int) -> None:
        self._totals[name] += length
        self._pending[name].append(values)
        self._pending[f"{name}_end"].append(self._totals[name])

    def _lengths(self) -> dict[str, int]:
        lengths = {name: column.length for name, column in self._columns.items()}
        return lengths | {f"state/{dtype}": rows.written for dtype, rows in self._lanes.items()}


class _LaneRows:
    """The rows of one lane: absolute patterns, or differences between two absolute anchors."""

    def __init__(self, file: h5py.File, dtype: str, words: int, codec: Codec, block: int) -> None:
        kind = word_type(dtype)
        stored = kind.pattern if codec.differences else np.dtype(kind.plain)
        filtered = bool(codec.filter) and words * stored.itemsize >= _FILTERED_FROM_BYTES
        rows = 1 if filtered else max(1, _SMALL_CHUNK_BYTES // (words * stored.itemsize))
        chunks = (rows, -(-words // -(-words // _CHUNK_WORDS)))  # equal parts: a chunk at the edge is stored whole
        dataset = file.create_dataset(
            f"state/{dtype}",
            (0, words),
            maxshape=(None, words),
            chunks=chunks,
            dtype=stored,
            track_times=False,
            **(codec.filter if filtered else {}),
        )
        self._dataset, self._rows = dataset, Growing(dataset)
        self._anchors = None
        if codec.differences:
            self._anchors = file.create_dataset(
                f"anchor/{dtype}", (2, words), chunks=(1, chunks[1]), dtype=kind.plain, track_times=False
            )
        self._plain = np.dtype(kind.plain)
        self._block = np.empty((block, words), kind.pattern)
        self._filled = 0
        self._last: np.ndarray | None = None

    @property
    def written(self) -> int:
        """Rows handed to HDF5."""
        return self._rows.length

    def add(self, words: np.ndarray) -> None:
        """The next stored state."""
        if len(words) != self._block.shape[1]:
            raise ValueError(f"a lane has {len(words)} words, its layout {self._block.shape[1]}")
        previous, self._last = self._last, words
        if self._anchors is None:
            self._block[self._filled] = words
        elif previous is None:
            self._anchors[0] = words.view(self._plain)
            return
        else:
            encode_difference(previous, words, self._block[self._filled])
        self._filled += 1
        if self._filled == len(self._block):
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        self._rows.append(self._block[: self._filled].view(self._rows.dtype))
        self._filled = 0

    def write_last_anchor(self) -> None:
        """The newest state, absolute: where readers that go backwards begin."""
        if self._anchors is not None and self._last is not None:
            self._anchors[1] = self._last.view(self._plain)

    def shrink(self, rows: int) -> None:
        """Back to that many rows."""
        self._filled = 0
        self._rows.resize(rows)
        if self._anchors is not None and self._last is not None:
            value = self._anchors[0].view(self._block.dtype)
            for row in range(rows):
                step_forth(self._dataset[row], value)
            self._last = value


def _lanes(file: h5py.File, layout: Layout, codec: Codec) -> dict[str, _LaneRows]:
    block = max(1, min(16, _BLOCK_BYTES // max(1, row_bytes(layout))))
    sizes = {dtype: n * word_type(dtype).per_element for dtype, n in layout.lanes.items() if n}
    return {dtype: _LaneRows(file, dtype, words, codec, block) for dtype, words in sizes.items()}


def _columns(file: h5py.File, groups: int) -> dict[str, Growing]:
    columns = {
        name: file.create_dataset(name, (0,), maxshape=(None,), chunks=(chunk,), dtype=dtype, track_times=False)
        for name, (dtype, chunk) in COLUMNS.items()
    }
    columns["lr"] = file.create_dataset(
        "lr", (0, groups), maxshape=(None, groups), chunks=(128, groups), dtype="<f8", track_times=False
    )
    return {name: Growing(created) for name, created in columns.items()}


def _joined(name: str, pending: list[Any]) -> np.ndarray:
    if name == "lr":
        return np.stack(pending)
    dtype = COLUMNS[name][0]
    if name in ("step", "blob"):
        return np.frombuffer(b"".join(pending), dtype)
    if name in ("ids", "step_blobs"):
        return np.concatenate([np.asarray(p, dtype) for p in pending]) if pending else np.empty(0, dtype)
    return np.array(pending, dtype)
