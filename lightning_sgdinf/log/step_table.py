"""The steps of one segment, read in one go and checked one by one."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.checksum import step_checksum
from lightning_sgdinf.log.hdf5 import dataset, read_column, reading
from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.segment_writer import COLUMNS
from lightning_sgdinf.log.step_documents import Frame, ReadBatch, decode_step, read_frame

_Sliceable = TypeVar("_Sliceable", np.ndarray, bytes, list[int])
_PER_STEP = ("state_crc", "ids_end", "step_end", "step_blobs_end", "crc")


class StepTable:
    """Steps ``first .. first + len(self) - 1``.

    Args:
        file: Open segment.
        path: Its path, for errors.
        first: Number of its first step.
        partial: The writer did not seal it: columns may end in the middle of a flush.
    """

    def __init__(self, file: h5py.File, path: Path, first: int, *, partial: bool = False) -> None:
        self._path, self._first = path, first
        columns = {
            name: read_column(file, name, path, dtype, sealed=not partial) for name, (dtype, _) in COLUMNS.items()
        }
        with reading(path, "dataset lr"):
            groups = int(dataset(file, "lr").shape[1])
        rates = read_column(file, "lr", path, "<f8", groups, sealed=not partial)
        lengths = {name: len(columns[name]) for name in _PER_STEP} | {"lr": len(rates)}
        if not partial and len(set(lengths.values())) > 1:
            raise LogCorruptError(f"{path}: the columns of the steps differ in length: {lengths}")
        self.length = min(lengths.values())
        self.crc: np.ndarray = columns["crc"][: self.length]
        self.state_crc: list[int] = columns["state_crc"].tolist()
        stored = columns["state_index"]
        self.stored: np.ndarray = stored[stored < first + self.length] if partial else stored
        if len(self.stored) and (
            (np.diff(self.stored) <= 0).any() or self.stored[0] < first or self.stored[-1] >= first + self.length
        ):
            raise LogCorruptError(f"{path}: column state_index does not increase within the segment's steps")
        self._stored = set(self.stored.tolist())
        self._rates, self._rate_bytes = rates.tobytes(), 8 * groups
        self._ids, self._step, self._blob = columns["ids"], columns["step"].tobytes(), columns["blob"].tobytes()
        self._step_blobs: list[int] = columns["step_blobs"].tolist()
        self._ends = {name: [0, *columns[f"{name}_end"].tolist()] for name in ("ids", "step", "step_blobs", "blob")}
        self._blobs: dict[int, tuple[bytes, int]] = {}
        self._frames: dict[int, Frame] = {}

    def __len__(self) -> int:
        """Number of steps."""
        return self.length

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` steps."""
        self.length, self.crc = length, self.crc[:length]
        self.stored = self.stored[self.stored < self._first + length]

    @property
    def checksum(self) -> int:
        """Of the segment, as the end mark has it."""
        return zlib.crc32(self.stored.data, zlib.crc32(self.crc.data))

    def step(self, index: int, read_batch: ReadBatch | None = None) -> Step:
        """A step, checked.

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
                frame = self._frames[places[0]] = read_frame(self._blobs[places[0]][0])
            return decode_step(index, document, ids.copy(), [self._blobs[p][0] for p in places], frame, read_batch)

    def check(self, index: int) -> None:
        """Compare a step with its checksum.

        Raises:
            LogCorruptError: They differ.
        """
        self._checked(index)

    def _checked(self, index: int) -> tuple[np.ndarray, bytes, list[int]]:
        row = index - self._first
        with reading(self._path, f"step {index}"):
            ids = self._slice("ids", self._ids, row)
            document = self._slice("step", self._step, row)
            places = self._slice("step_blobs", self._step_blobs, row)
            checksums = [self._blob_at(place)[1] for place in places]
            rates = self._rates[row * self._rate_bytes : (row + 1) * self._rate_bytes]
            crc = step_checksum(index, index in self._stored, ids, rates, document, checksums, self.state_crc[row])
        if crc != self.crc[row]:
            raise LogCorruptError(f"{self._path}: step {index} differs from its checksum; restore the file from a copy")
        return ids, document, places

    def _slice(self, name: str, values: _Sliceable, row: int) -> _Sliceable:
        ends = self._ends[name]
        start, stop = ends[row], ends[row + 1]
        if not 0 <= start <= stop <= len(values):
            raise ValueError(f"{name}_end says {start}:{stop} of {len(values)}")
        return values[start:stop]

    def _blob_at(self, place: int) -> tuple[bytes, int]:
        known = self._blobs.get(place)
        if known is None:
            if not 0 <= place < len(self._ends["blob"]) - 1:
                raise ValueError(f"byte string {place} of {len(self._ends['blob']) - 1}")
            data = self._slice("blob", self._blob, place)
            known = self._blobs[place] = (data, zlib.crc32(data))
        return known
