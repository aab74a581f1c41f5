"""Read one segment."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import h5py
from torch import Tensor

from lightning_sgdinf.errors import LogCorruptError, LogVersionError, StateNotStoredError
from lightning_sgdinf.log.batch_store import BatchReader
from lightning_sgdinf.log.bit_patterns import row_bytes
from lightning_sgdinf.log.codecs import Codec, codec_named
from lightning_sgdinf.log.directory import SEGMENT_FORMAT
from lightning_sgdinf.log.documents import checked_run_id, header_from_json, layout_from_json, text
from lightning_sgdinf.log.hdf5 import dataset, integer, open_file, read_document, reading
from lightning_sgdinf.log.pages import first_and_further, read_pages
from lightning_sgdinf.log.records import Header
from lightning_sgdinf.log.state_table import StateTable
from lightning_sgdinf.log.step_table import StepTable
from lightning_sgdinf.state import Layout, ModelState

_OF_A_DRAFT = "step_end"  # a dataset of logs from before the first release, where steps were not in pages


class SegmentReader:
    """Steps ``first .. first + len(self.steps) - 1`` of a run.

    Args:
        path: The file.
        first: Number of its first step, as its name says.
        run_id: Run that it must belong to; ``None`` to accept any.
        sealed: Its writer finished it.

    Raises:
        LogVersionError: It has another format.
        LogCorruptError: It cannot be read, or is not the segment its name says.
    """

    def __init__(self, path: Path, first: int, *, run_id: str | None = None, sealed: bool = True) -> None:
        self.path, self.first, self.sealed = path, first, sealed
        self._file = open_file(path, SEGMENT_FORMAT, sealed=sealed)
        try:
            self._identify(run_id)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def of_unsealed(cls, path: Path, first: int, *, check: bool = True) -> SegmentReader:
        """Open a segment whose writer died; the file is left as it is.

        Args:
            path: The file.
            first: Number of its first step, as its name says.
            check: Read everything, and keep the longest whole prefix. Otherwise there may be less than it claims.

        Raises:
            LogCorruptError: Not even the beginning can be read.
        """
        segment = cls(path, first, sealed=False)
        try:
            if check:
                segment._keep_whole_prefix()
        except BaseException:
            segment.close()
            raise
        return segment

    @cached_property
    def header_document(self) -> bytes:
        """The run's header as it is stored."""
        return read_document(self._file, "header", self.path)

    @cached_property
    def header(self) -> Header:
        """The run's header."""
        with reading(self.path, "header"):
            return header_from_json(self.header_document)

    @cached_property
    def layout(self) -> Layout:
        """Of all its states."""
        document = read_document(self._file, "layout", self.path)
        with reading(self.path, "layout"):
            return layout_from_json(document)

    @cached_property
    def steps(self) -> StepTable:
        """Its steps."""
        return StepTable(self._file, self.path, self.first, partial=not self.sealed)

    @cached_property
    def states(self) -> StateTable:
        """Its stored states."""
        return StateTable(self._file, self.path, self.layout, self.codec, len(self.steps.stored), sealed=self.sealed)

    @cached_property
    def batches(self) -> BatchReader:
        """The stored batches of its steps."""
        return BatchReader(self._file, self.path, self.first, self.steps.batch_ends)

    def check_batches(self, index: int) -> None:
        """Compare the stored batches of a step with their checksums.

        Raises:
            LogCorruptError: They differ.
        """
        if "batch" in self._file:
            self.steps.encoded(index, self.batches.read)

    def state(self, index: int) -> ModelState:
        """Read stored state ``index``; see `flat_state`."""
        return self.layout.unpack(self.flat_state(index))

    def flat_state(self, index: int) -> dict[str, Tensor]:
        """Read stored state ``index`` as flat buffers of its own.

        Raises:
            StateNotStoredError: Only its checksum is known.
            LogCorruptError: It differs from what was written.
        """
        row = int(self.steps.stored.searchsorted(index))
        if row == len(self.steps.stored) or self.steps.stored[row] != index:
            self.steps.check(index)
            raise StateNotStoredError(
                f"{self.path}: state {index} was not kept, only its checksum; read an earlier one and replay from there"
            )
        return self.states.read(row, index, self.steps.state_crc[index - self.first])

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each dataset takes in the file, by name."""
        sizes: dict[str, int] = {}
        with reading(self.path, "list of datasets"):
            rows = [f"{group}/{dtype}" for group in ("state", "anchor") for dtype in self.layout.buffer_sizes]
            for name in ("header", "layout", "page", "page_end", "batch", *rows):
                if isinstance(self._file.get(name, getlink=True), h5py.HardLink):
                    sizes[name] = int(dataset(self._file, name).id.get_storage_size())
        return sizes

    def record_sizes(self) -> tuple[int, float, int]:
        """Return the bytes of the first step's record, of each further one's, and of all batches."""
        first, further = first_and_further(read_pages(self._file, self.path, sealed=self.sealed))
        with reading(self.path, "batches"):
            stored = isinstance(self._file.get("batch", getlink=True), h5py.HardLink)
            return first, further, int(dataset(self._file, "batch").shape[0]) if stored else 0

    @property
    def plain_bytes(self) -> int:
        """Bytes of its stored states before compression."""
        return row_bytes(self.layout) * len(self.steps.stored)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _identify(self, run_id: str | None) -> None:
        with reading(self.path, "attributes"):
            if _OF_A_DRAFT in self._file:
                raise LogVersionError(
                    f"{self.path}: the segment is of a draft of format {SEGMENT_FORMAT!r} that no release reads; "
                    "record the run again"
                )
            self.run_id = checked_run_id(self._file.attrs["run_id"])
            self.codec: Codec = codec_named(text(self._file.attrs["codec"], "codec"))
            said = integer(self._file, "first_step")
        if said != self.first:
            raise LogCorruptError(
                f"{self.path}: the segment begins with step {said}, its name says {self.first}; give it its "
                "old name, or restore it from a copy"
            )
        if run_id is not None and self.run_id != run_id:
            raise LogCorruptError(
                f"{self.path}: the segment belongs to run {self.run_id}, the log to run {run_id}; restore that of "
                "this run"
            )

    def _keep_whole_prefix(self) -> None:
        steps, kept = self.steps, 0
        try:
            for index in range(self.first, self.first + len(steps)):
                steps.check(index)
                self.check_batches(index)
                if kept < len(steps.stored) and steps.stored[kept] == index:
                    self.state(index)
                    kept += 1
        except LogCorruptError:
            steps.truncate(index - self.first)
            self.__dict__.pop("states", None)  # which counts on more
