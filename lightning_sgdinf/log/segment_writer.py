"""Write one segment: a file that readers may look into while it grows, sealed by renaming it.

Every object is made before the file is opened to readers; from then on datasets only grow. The page of a step follows
its state, so that a prefix of the file is always whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.log.batch_store import BatchWriter
from lightning_sgdinf.log.bit_patterns import row_bytes
from lightning_sgdinf.log.buffer_rows import create_rows, rows_of
from lightning_sgdinf.log.checksum import StateChecksum, step_checksum
from lightning_sgdinf.log.codecs import Codec
from lightning_sgdinf.log.directory import SEGMENT_FORMAT, publish
from lightning_sgdinf.log.documents import layout_to_json
from lightning_sgdinf.log.end_mark import SegmentEntry
from lightning_sgdinf.log.hdf5 import (
    close_flushed,
    discard,
    open_file,
    open_growing,
    read_document,
    skeleton,
    write_document,
)
from lightning_sgdinf.log.pages import MAX_STEPS, PageWriter
from lightning_sgdinf.log.step_documents import EncodedStep
from lightning_sgdinf.state import Layout

SEGMENT_BYTES = 256 << 20
"""Bytes of uncompressed states per segment, unless somebody says otherwise."""

_MIN_STORED = 16
_MAX_SIDE_BYTES = 32 << 20
_LOOK_ONLY = 0o444  # while it is written, who opens it with mode "w" would empty it, whatever HDF5 says then


def most_states(state_bytes: int, segment_bytes: int) -> int:
    """Return the largest number of states that a segment stores.

    Args:
        state_bytes: Of an uncompressed state.
        segment_bytes: Bytes of uncompressed states after which it is full.
    """
    return min(MAX_STEPS, max(_MIN_STORED, segment_bytes // max(1, state_bytes)))


class SegmentWriter:
    """One segment being written.

    Args:
        path: File to make.
        first: Number of its first step.
        run_id: Name of the run.
        header: Header document.
        layout: Of all its states.
        codec: Of its states.
        segment_bytes: Bytes of uncompressed states, or of uncompressed batches, after which it is full.
        short: Only a few states: enough to choose the next segment's codec by.
        batch_bytes: Bytes of the first step's batches; 0 if its steps have none.
    """

    def __init__(
        self,
        path: Path,
        first: int,
        *,
        run_id: str,
        header: bytes,
        layout: Layout,
        codec: Codec,
        segment_bytes: int,
        short: bool = False,
        batch_bytes: int = 0,
    ) -> None:
        self.path, self.first, self.layout, self.steps = path, first, layout, 0
        self.checksum = StateChecksum(layout)
        self._crcs: list[int] = []
        self._stored: list[int] = []
        self._max_stored = most_states(row_bytes(layout), 0 if short else segment_bytes)
        self._max_batch_bytes = max(segment_bytes, _MAX_SIDE_BYTES)
        self._documents = {"header": header, "layout": layout_to_json(layout)}
        with skeleton(path, SEGMENT_FORMAT) as file:
            file.attrs.update({"first_step": np.int64(first), "run_id": run_id, "codec": codec.name})
            for name, data in self._documents.items():
                write_document(file, name, data)
            create_rows(file, layout, codec)
            PageWriter.create(file)
            if batch_bytes:
                BatchWriter.create(file, batch_bytes)
        self._is_open = True
        try:
            self._file = open_growing(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._mode = path.stat().st_mode
        path.chmod(_LOOK_ONLY)
        self._rows, self._pages = rows_of(self._file, layout, codec), PageWriter(self._file)
        self._batches = BatchWriter(self._file) if batch_bytes else None

    @property
    def descriptor(self) -> int:
        """File descriptor that HDF5 writes to."""
        return self._file.id.get_vfd_handle()

    @property
    def state_bytes(self) -> int:
        """Bytes of its states in the file."""
        return sum(rows.size_bytes for rows in self._rows.values())

    def accepts(self, layout: Layout, *, with_batches: bool) -> bool:
        """Tell if the next step belongs into this segment; otherwise into another one.

        Args:
            layout: Of the state before the step.
            with_batches: Its batches are to be stored.
        """
        batches = 0 if self._batches is None else self._batches.length
        full = (
            self.steps >= MAX_STEPS
            or len(self._stored) >= self._max_stored
            or self._pages.side_bytes >= _MAX_SIDE_BYTES
            or batches >= self._max_batch_bytes
        )
        return (
            not full
            and (self._batches is not None) == with_batches
            and (self.layout is layout or self.layout == layout)
        )

    def add(self, step: EncodedStep, state_crc: int, patterns: Mapping[str, np.ndarray] | None) -> None:
        """Add the next step and the state before it.

        Args:
            step: The step.
            state_crc: The state's checksum.
            patterns: Bit patterns of the state by dtype, if it is to be stored. Their memory must stay as it is while
                it is one of the last `Codec.order` stored states.
        """
        index, store = self.first + self.steps, patterns is not None
        if patterns is not None:
            for dtype, rows in self._rows.items():
                rows.add(patterns[dtype])
            self._stored.append(index)
        batch_end = 0
        if self._batches is not None:
            self._batches.add(step.batches)
            batch_end = self._batches.length
        numbers, checksums = self._pages.strings(step)
        crc = step_checksum(index, store, step.example_ids, step.document, checksums, state_crc)
        self._pages.add(step, numbers, stored=store, state_crc=state_crc, crc=crc, batch_end=batch_end)
        self._crcs.append(crc)
        self.steps += 1

    def flush(self, *, durable: bool = False) -> None:
        """Hand everything to the operating system; then it survives the death of the process.

        Args:
            durable: Also wait until it is on the disk; then it survives a power failure.
        """
        for rows in self._rows.values():
            rows.flush()
        self._pages.flush()
        self._file.flush()
        if durable:
            os.fsync(self.descriptor)

    def seal(self, final: Path) -> SegmentEntry:
        """Finish the file, read it back, give it its final name, and say what it holds.

        Raises:
            OSError: It is not as it should be; it keeps its name.
        """
        self.flush()
        for rows in self._rows.values():
            rows.write_last_anchors()
        self._file.flush()
        self.path.chmod(self._mode)
        self._is_open = False  # whatever HDF5 says to it, it is closed once
        close_flushed(self._file, self.path)
        self._check()
        publish(self.path, final)
        checksum = crc32(np.array(self._stored, "<i8").data, crc32(np.array(self._crcs, "<u4").data))
        return SegmentEntry(self.first, self.steps, checksum)

    def discard(self) -> None:
        """Close the file under the name it has, whatever HDF5 says, as it is on the disk."""
        if self._is_open:
            self._is_open = False
            discard(self._file)

    def _check(self) -> None:
        """Read everything back, and compare it with what was handed over: HDF5 does not tell of every failure.

        Raises:
            OSError: It differs.
        """
        try:
            with open_file(self.path, SEGMENT_FORMAT) as file:
                if any(read_document(file, name, self.path) != data for name, data in self._documents.items()):
                    raise ValueError("a document is not the one that was written")
                self._pages.check(file)
                if self._batches is not None:
                    self._batches.check(file)
                for rows in self._rows.values():
                    rows.check(file)
        except Exception as error:
            raise OSError(f"{self.path.name} cannot be read back: {error}") from error
