"""The end mark of a log: the reason of the end, the last state, and the segments that there must be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.bit_patterns import state_patterns, word_counts, word_type
from lightning_sgdinf.log.checksum import StateChecksum
from lightning_sgdinf.log.directory import END_FORMAT, LogDirectory, publish
from lightning_sgdinf.log.documents import (
    from_plain_json,
    header_from_json,
    header_to_json,
    layout_from_json,
    layout_to_json,
    text,
    to_plain_json,
    whole,
)
from lightning_sgdinf.log.hdf5 import (
    ReadHdf5,
    checked_dataset,
    dataset,
    integer,
    new_file,
    open_file,
    read_document,
    reading,
    write_document,
)
from lightning_sgdinf.log.records import Header, Json
from lightning_sgdinf.plain_text import encodable
from lightning_sgdinf.state import Layout, ModelState

SMALL_BYTES = 16 << 20
"""A state of at most this size is kept in memory."""


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One sealed segment.

    Attributes:
        first: Number of its first step.
        steps: Number of its steps.
        checksum: CRC-32 of its column ``crc`` followed by its column ``state_index``.
    """

    first: int
    steps: int
    checksum: int


def total_steps(path: Path, counts: Iterable[tuple[int, int]]) -> int:
    """Return the number of steps of segments that follow one another without a gap.

    Args:
        path: The log, for errors.
        counts: First step and number of steps of each segment, in order.

    Raises:
        LogCorruptError: One is missing.
    """
    expected = 0
    for first, steps in counts:
        if first != expected:
            raise LogCorruptError(
                f"{path}: a segment begins with step {first}, expected {expected}: one is missing before it; "
                "restore it from a copy"
            )
        expected += steps
    return expected


@dataclass(frozen=True, slots=True, kw_only=True)
class EndMark:
    """The content of ``end.h5``.

    Attributes:
        header: The run's.
        steps: Number of recorded steps.
        reason: Of the end, e.g. ``"completed"``.
        segments: All of them, in order.
        path: The file.
        state_crc: Checksum of the state after the last step; ``None`` if the run was given up.
        small_state: That state, if it is small; else it is read again when it is asked for.
        average: Averaged parameters, if there are any.
    """

    header: Header
    steps: int
    reason: str
    segments: tuple[SegmentEntry, ...]
    path: Path
    state_crc: int | None = None
    small_state: ModelState | None = None
    average: Mapping[str, Tensor] | None = None

    @property
    def has_state(self) -> bool:
        """Return true if the state after the last step is known."""
        return self.state_crc is not None

    def read_state(self) -> ModelState:
        """Return the state after the last step in memory of its own.

        Raises:
            LogCorruptError: It differs from what was written.
        """
        if self.small_state is not None:
            return self.small_state.clone()
        with open_file(self.path, END_FORMAT) as file:
            return _read_state(file, "state", self.path)[0]


def write_end_mark(
    directory: LogDirectory,
    *,
    header: Header,
    steps: int,
    reason: str,
    segments: tuple[SegmentEntry, ...],
    final: tuple[Layout, Mapping[str, Tensor]] | None,
    average: Mapping[str, Tensor] | None,
) -> None:
    """Write the end mark whole, then give it its name."""
    temporary = directory.path / f"tmp-end-{os.getpid()}.h5"
    temporary.unlink(missing_ok=True)
    with new_file(temporary, END_FORMAT) as file:
        write_document(file, "header", header_to_json(header))
        summary: dict[str, Json] = {"run_id": header.run_id, "steps": steps, "reason": encodable(reason)}
        summary["segments"] = [asdict(s) for s in segments]
        write_document(file, "summary", to_plain_json(summary))
        if final is not None:
            _write_state(file, "state", *final)
        if average is not None:
            state = ModelState(params={name: value.detach().cpu() for name, value in average.items()})
            layout = Layout.of(state)
            flat = layout.empty()
            layout.pack(state, flat)
            _write_state(file, "average", layout, flat)
    publish(temporary, directory.end)


def read_end_mark(path: Path) -> EndMark:
    """Read and check ``end.h5``.

    Raises:
        LogVersionError: It has another format.
        LogCorruptError: It differs from what was written.
    """
    with open_file(path, END_FORMAT) as file:
        header, summary = read_document(file, "header", path), read_document(file, "summary", path)
        with reading(path, "header and summary"):
            known = from_plain_json(summary)
            mark = {
                "header": header_from_json(header),
                "steps": whole(known["steps"], "steps"),
                "reason": text(known["reason"], "reason"),
                "segments": tuple(
                    SegmentEntry(*(whole(s[name], name) for name in ("first", "steps", "checksum")))
                    for s in known["segments"]
                ),
            }
        state, crc = _read_state(file, "state", path) if "state" in file else (None, None)
        average = _read_state(file, "average", path)[0].params if "average" in file else None
    small = None if state is None or state.nbytes > SMALL_BYTES else state
    return EndMark(**mark, path=path, state_crc=crc, small_state=small, average=average)


def _write_state(file: h5py.File, name: str, layout: Layout, flat: Mapping[str, Tensor]) -> None:
    group = file.create_group(name)
    write_document(file, f"{name}/layout", layout_to_json(layout))
    patterns = state_patterns({dtype: flat[dtype] for dtype in layout.buffer_sizes})
    group.attrs["crc32"] = np.uint32(StateChecksum(layout).of_patterns(patterns))
    for dtype, values in patterns.items():
        if len(values):
            group.create_dataset(dtype, data=values.view(word_type(dtype).plain), track_times=False)


def _read_state(file: ReadHdf5, name: str, path: Path) -> tuple[ModelState, int]:
    with reading(path, f"layout of {name}"):
        layout = layout_from_json(read_document(file, f"{name}/layout", path))
        for dtype, words in word_counts(layout).items():
            if words and checked_dataset(file, f"{name}/{dtype}", word_type(dtype).plain).shape != (words,):
                raise ValueError(f"{name}/{dtype} does not have the {words} words of its layout")
    flat = layout.empty()
    patterns = state_patterns(flat)
    with reading(path, name):
        for dtype, values in patterns.items():
            if len(values):
                dataset(file, f"{name}/{dtype}").read_direct(values.view(word_type(dtype).plain))
        recorded = integer(file[name], "crc32")
    if StateChecksum(layout).of_patterns(patterns) != recorded:
        raise LogCorruptError(f"{path}: {name} differs from its checksum; restore the file from a copy")
    return layout.unpack(flat), recorded
