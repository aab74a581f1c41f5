"""Make a log whole again after its writer died, and cut it back to an earlier step.

A file of a dead writer is only ever read, from a copy: what its checksums prove is written to a new file, and that
takes the old one's place by renaming. So any of this may itself be killed, and repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import LogCorruptError, ResumeError
from lightning_sgdinf.log.bit_patterns import state_patterns
from lightning_sgdinf.log.directory import WritableDirectory, sync_file
from lightning_sgdinf.log.end_mark import EndMark, SegmentEntry, read_end_mark, total_steps, write_end_mark
from lightning_sgdinf.log.records import Header
from lightning_sgdinf.log.segment_reader import SegmentReader
from lightning_sgdinf.log.segment_writer import SegmentWriter
from lightning_sgdinf.log.step_documents import EncodedStep
from lightning_sgdinf.log.verify import verify_segments


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """The outcome of `recover`.

    Attributes:
        steps: Recorded steps of the log.
        sealed: Steps that came out of a file that was not sealed.
        set_aside: Files that could not be read, under their new names.
    """

    steps: int
    sealed: int
    set_aside: tuple[Path, ...]

    @property
    def changed(self) -> bool:
        """True if there was anything to do."""
        return bool(self.sealed or self.set_aside)


def recover(path: str | os.PathLike[str]) -> RecoveryReport:
    """Seal what a dead writer has left, so that the log is whole, but without a state after its last step.

    Nothing happens to a log that is whole. A last segment that differs from its checksums is set aside, with the end
    mark, and what is whole of it is kept. May be interrupted and repeated.

    Args:
        path: The log.

    Raises:
        LogNotFoundError: There is none.
        LogLockedError: Its writer is alive.
        LogCorruptError: A segment before the last is missing or damaged.
        LogWriteError: The disk is full, or not writable.
    """
    directory = WritableDirectory(path, present="keep")
    try:
        aside: list[Path] = []
        end = _readable_end(directory, aside)
        sealed = seal_live(directory, end, aside)
        if not sealed and (spoilt := _spoilt_last(directory)) is not None:
            end, sealed = None, _reseal(directory, spoilt, aside)
        if end is not None and not sealed:
            return RecoveryReport(steps=end.steps, sealed=0, set_aside=tuple(aside))
        header, entries = survey(directory)
        steps = total_steps(directory.path, [(entry.first, entry.steps) for entry in entries])
        if header is not None:
            reason = f"killed after step {steps - 1}; recovered"
            write_end_mark(
                directory, header=header, steps=steps, reason=reason, segments=tuple(entries), final=None, average=None
            )
        return RecoveryReport(steps=steps, sealed=sealed, set_aside=tuple(aside))
    finally:
        directory.release()


def _spoilt_last(directory: WritableDirectory) -> tuple[int, Path] | None:
    """Return first step and path of the last segment, if it was sealed and differs from its checksums.

    That is what a disk leaves that fails at the end: earlier ones were read when they were whole.
    """
    sealed = directory.segments("seg")
    if not sealed:
        return None
    first, path = max(sealed.items())
    try:
        with closing(SegmentReader(path, first)) as segment:
            if verify_segments(segment.header, [segment], finished=False).ok:
                return None
    except LogCorruptError:
        pass
    return first, path


def _reseal(directory: WritableDirectory, spoilt: tuple[int, Path], aside: list[Path]) -> int:
    """Seal the steps of a spoilt segment that are whole; return their number. It is set aside, with the end mark, which
    is not that of the log that is left."""
    first, path = spoilt
    if directory.has_end:
        aside.append(_set_aside(directory.end))
    kept = _set_aside(path)
    aside.append(kept)
    try:
        with closing(SegmentReader.of_unsealed(kept, first, check=False)) as segment:
            entry = rewrite(directory, segment, len(segment.steps))
    except LogCorruptError:
        return 0
    return 0 if entry is None else entry.steps


def cut(directory: WritableDirectory, run_id: str, steps: int) -> list[SegmentEntry]:
    """Seal what is not sealed, and drop all steps from ``steps`` on.

    The end mark stays if there is nothing to drop: the state after the last step is nowhere else.

    Args:
        directory: Held by this process.
        run_id: Run that the log must be of.
        steps: Number of steps to keep.

    Returns:
        The segments that are left.

    Raises:
        ResumeError: The log is of another run, or has fewer steps.
        LogCorruptError: A segment is missing or damaged.
    """
    seal_live(directory, _readable_end(directory, []), [])
    header, entries = survey(directory)
    recorded = total_steps(directory.path, [(entry.first, entry.steps) for entry in entries])
    if header is not None and header.run_id != run_id:
        raise ResumeError(
            f"{directory.path} is the log of run {header.run_id}, expected run {run_id}; resume with the path of that "
            "run's log, or record a new one"
        )
    if recorded < steps:
        raise ResumeError(
            f"{directory.path} has {recorded} steps and shall be continued with step {steps}: steps {recorded} to "
            f"{steps - 1} are lost; resume from an earlier checkpoint, or record a new log"
        )
    if recorded > steps:
        directory.end.unlink(missing_ok=True)
        sync_file(directory.path)
        while entries and entries[-1].first >= steps:
            directory.sealed(entries.pop().first).unlink()
        if entries and entries[-1].first + entries[-1].steps > steps:
            last = entries.pop()
            path = directory.sealed(last.first)
            with closing(SegmentReader(path, last.first, run_id=run_id)) as segment:
                if (kept := rewrite(directory, segment, steps - last.first)) is not None:
                    entries.append(kept)
    return entries


def seal_live(directory: WritableDirectory, end: EndMark | None, aside: list[Path]) -> int:
    """Turn the unsealed segment into a sealed one; return the number of its steps.

    Args:
        directory: Held by this process.
        end: The end mark, if there is one: then only a segment that goes on after it counts.
        aside: Gets the new names of files that cannot be read.
    """
    count, sealed = 0, directory.segments("seg")
    for first, path in directory.segments("live").items():
        if first not in sealed:  # otherwise a recovery died after it gave the new file its name
            try:
                count += _seal(directory, first, path, end)
            except LogCorruptError:
                aside.append(_set_aside(path))
                continue
        path.unlink()
    sync_file(directory.path)
    return count


def _seal(directory: WritableDirectory, first: int, path: Path, end: EndMark | None) -> int:
    with closing(SegmentReader.of_unsealed(path, first, check=False)) as segment:
        if end is not None:
            if (first, segment.run_id) != (end.steps, end.header.run_id) or not _begins(segment):
                return 0
            directory.end.unlink()  # the run went on after its end
            sync_file(directory.path)
        entry = rewrite(directory, segment, len(segment.steps))
        return entry.steps if entry is not None else 0


def _begins(segment: SegmentReader) -> bool:
    """Tell if the first step of an unsealed segment is whole."""
    try:
        if len(segment.steps):
            segment.steps.encoded(segment.first, segment.batches.read)
            if segment.first in segment.steps.stored:
                segment.flat_state(segment.first)
            return True
    except LogCorruptError:
        pass
    return False


def rewrite(directory: WritableDirectory, segment: SegmentReader, steps: int) -> SegmentEntry | None:
    """Write the first steps of a segment to a new file, which takes the place of the sealed segment of that name.

    Args:
        directory: Held by this process.
        segment: The segment.
        steps: Number of steps; of an unsealed segment fewer may be written, as many as are whole.

    Returns:
        What was written; ``None`` if nothing, because no step is whole.

    Raises:
        LogCorruptError: A sealed segment differs from its checksums.
    """
    temporary = directory.path / f"tmp-{os.getpid()}-{segment.first:010d}.h5"
    temporary.unlink(missing_ok=True)
    writer = None
    try:
        for step, state_crc, patterns in _read(segment, steps):
            if writer is None:
                writer = SegmentWriter(
                    temporary,
                    segment.first,
                    run_id=segment.run_id,
                    header=segment.header_document,
                    layout=segment.layout,
                    codec=segment.codec,
                    segment_bytes=1,  # whoever adds judges whether it is full
                    batch_bytes=sum(map(len, step.batches)),
                )
            writer.add(step, state_crc, patterns)
            if not writer.steps % _FLUSH_STEPS:
                writer.flush()
        return None if writer is None else writer.seal(directory.sealed(segment.first))
    except BaseException:
        if writer is not None:
            writer.discard()
        temporary.unlink(missing_ok=True)
        raise


def _read(segment: SegmentReader, steps: int) -> Iterator[tuple[EncodedStep, int, dict[str, np.ndarray] | None]]:
    """Yield steps, checksums of the states before them, and the patterns of these states if they are stored."""
    stored = set(segment.steps.stored.tolist())
    for index in range(segment.first, segment.first + steps):
        try:
            step, patterns = segment.steps.encoded(index, segment.batches.read), None
            if index in stored:
                patterns = state_patterns(segment.flat_state(index))
        except LogCorruptError:
            if segment.sealed:
                raise
            return
        yield step, segment.steps.state_crc[index - segment.first], patterns


def survey(directory: WritableDirectory) -> tuple[Header | None, list[SegmentEntry]]:
    """Return the newest header, and the entries of the sealed segments."""
    header, entries = None, []
    for first, path in directory.segments("seg").items():
        with closing(SegmentReader(path, first, run_id=None if header is None else header.run_id)) as segment:
            header = segment.header
            entries.append(SegmentEntry(first, len(segment.steps), segment.steps.checksum))
    return header, entries


_FLUSH_STEPS = 64


def _readable_end(directory: WritableDirectory, aside: list[Path]) -> EndMark | None:
    if not directory.has_end:
        return None
    try:
        return read_end_mark(directory.end)
    except LogCorruptError:
        aside.append(_set_aside(directory.end))
        return None


def _set_aside(path: Path) -> Path:
    """Rename a file out of the way, without deleting it."""
    number = 1
    while (target := path.with_name(f"damaged-{number}-{path.name}")).exists():
        number += 1
    path.rename(target)
    return target
