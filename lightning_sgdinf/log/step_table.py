"""The steps of one segment, read in one go and checked one by one."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.checksum import step_checksum
from lightning_sgdinf.log.hdf5 import ReadHdf5, reading
from lightning_sgdinf.log.pages import read_pages
from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.step_documents import EncodedStep, Frame, ReadBatch, batches_of, decode_step, read_frame
from lightning_sgdinf.log.twister import NARROW, RAW, WIDE, StreamDecoder


class StepTable:
    """Steps ``first .. first + len(self) - 1``.

    Args:
        file: Open segment.
        path: Its path, for errors.
        first: Number of its first step.
        partial: The writer did not seal it: the last pages may be damaged.
    """

    def __init__(self, file: ReadHdf5, path: Path, first: int, *, partial: bool = False) -> None:
        self._path, self._first = path, first
        page = read_pages(file, path, sealed=not partial)
        self.length = len(page.crc)
        self.crc = np.array(page.crc, "<u4")
        self.state_crc = page.state_crc
        self.batch_ends = [0, *page.batch_ends]
        self.stored: np.ndarray = first + np.flatnonzero(np.array(page.stored, np.int64))
        self._is_stored = page.stored
        self._ids = np.concatenate(page.ids) if page.ids else np.empty(0, "<i8")
        self._id_ends = [0, *accumulate(page.id_counts)]
        self._documents, self._document_ends = b"".join(page.documents), [0, *accumulate(page.document_sizes)]
        self._used, self._used_ends = page.strings_used, [0, *accumulate(page.string_counts)]
        self._strings = _Strings(page.kinds, page.strings)
        self._frames: dict[int, Frame] = {}

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.length

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` steps."""
        self.length, self.crc = length, self.crc[:length]
        self.stored = self.stored[self.stored < self._first + length]

    @property
    def checksum(self) -> int:
        """Of the segment, as the end mark has it."""
        return crc32(self.stored.astype("<i8").data, crc32(self.crc.data))

    def step(self, index: int, read_batch: ReadBatch | None = None) -> Step:
        """Return a step, checked.

        Args:
            index: Number of the step.
            read_batch: Reads its stored batches when they are asked for.

        Raises:
            LogCorruptError: It differs from what was written.
        """
        ids, document, places = self._checked(index)
        with reading(self._path, f"step {index}"):
            frame = self._frames.get(places[0])
            if frame is None:
                frame = self._frames[places[0]] = read_frame(self._strings.content(places[0]))
            return decode_step(
                index, document, ids.copy(), [self._strings.content(p) for p in places], frame, read_batch
            )

    def encoded(self, index: int, read_batch: ReadBatch) -> EncodedStep:
        """Return a step in the terms of the file, checked.

        Raises:
            LogCorruptError: It, or one of its batches, differs from what was written.
        """
        ids, document, places = self._checked(index)
        with reading(self._path, f"step {index}"):
            return EncodedStep(
                document=document,
                example_ids=ids,
                blobs=tuple(self._strings.content(p) for p in places),
                batches=batches_of(index, document, read_batch),
            )

    def check(self, index: int) -> None:
        """Compare a step with its checksum.

        Raises:
            LogCorruptError: They differ.
        """
        self._checked(index)

    def _checked(self, index: int) -> tuple[np.ndarray, bytes, list[int]]:
        row = index - self._first
        with reading(self._path, f"step {index}"):
            ids = self._ids[self._id_ends[row] : self._id_ends[row + 1]]
            document = self._documents[self._document_ends[row] : self._document_ends[row + 1]]
            places = self._used[self._used_ends[row] : self._used_ends[row + 1]]
            checksums = [self._strings.checksum(place) for place in places]
            crc = step_checksum(index, bool(self._is_stored[row]), ids, document, checksums, self.state_crc[row])
        if crc != self.crc[row]:
            raise LogCorruptError(f"{self._path}: step {index} differs from its checksum; restore the file from a copy")
        return ids, document, places


class _Strings:
    """The byte strings of a segment."""

    def __init__(self, kinds: list[int], stored: list[bytes]) -> None:
        self._kinds, self._stored = kinds, stored
        self._streams = StreamDecoder()
        self._checksums: dict[int, int] = {}

    def content(self, number: int) -> bytes:
        """Return a byte string.

        Raises:
            ValueError: There is none of that number, or it cannot be put together.
        """
        if not 0 <= number < len(self._stored):
            raise ValueError(f"byte string {number} of {len(self._stored)}")
        kind, stored = self._kinds[number], self._stored[number]
        if kind == RAW:
            return stored
        if kind not in (WIDE, NARROW):
            raise ValueError(f"byte string {number} is of unknown kind {kind}")
        base, twists, rest = self._streams.place(stored)
        if not (base < len(self._stored) and self._kinds[base] == RAW):
            raise ValueError(f"byte string {number} follows from {base}, which is none that others follow from")
        return self._streams.decode(kind, base, self._stored[base], twists, rest)

    def checksum(self, number: int) -> int:
        """Return the CRC-32 of a byte string."""
        known = self._checksums.get(number)
        if known is None:
            known = self._checksums[number] = crc32(self.content(number))
        return known
