"""Write a log, one call after another; `LogWriter` calls this from its thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.log.bit_patterns import row_bytes, state_patterns
from lightning_sgdinf.log.codec_choice import CodecChoice
from lightning_sgdinf.log.descriptors import identity, redirect
from lightning_sgdinf.log.directory import WritableDirectory, sync_file
from lightning_sgdinf.log.documents import header_to_json
from lightning_sgdinf.log.end_mark import SegmentEntry, write_end_mark
from lightning_sgdinf.log.held_states import FlatState, HeldStates
from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.segment_writer import SegmentWriter
from lightning_sgdinf.log.status import StatusBoard
from lightning_sgdinf.log.step_documents import EncodedStep, encode_step
from lightning_sgdinf.state import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSizes:
    """The sizes of a log.

    Attributes:
        total: Bytes of all its files.
        states: Bytes of the states that its writer has stored in them.
    """

    total: int
    states: int


_FLUSH_SECONDS = 1.0
_RESERVE_SLACK = 1 << 20


class FlushTimer:
    """Counts what has not been flushed yet, and the time.

    Args:
        every: Steps between two flushes.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self.reset()

    def add_step(self) -> None:
        """Count a step."""
        self.steps += 1

    def reset(self) -> None:
        """Begin anew: everything has been flushed."""
        self.steps = 0
        self._since = time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the next flush is due; ``None`` if there is nothing to flush."""
        return max(0.0, self._since + _FLUSH_SECONDS - time.monotonic()) if self.steps else None

    @property
    def due(self) -> bool:
        """True if it is time to flush."""
        return self.steps >= self._every or self.seconds_left == 0.0


class LogStore:
    """The segments and the end mark of one log.

    Args:
        directory: Held by this process.
        header: Of the run.
        codec: Of the states.
        flush_every: Steps between two flushes.
        segment_bytes: See `SegmentWriter`.
        durable: Wait for the disk at each flush.
        sealed: The segments that are there.
        expected_steps: Of the whole run, if that is known.
    """

    def __init__(
        self,
        directory: WritableDirectory,
        *,
        header: Header,
        codec: CodecChoice,
        flush_every: int,
        segment_bytes: int,
        durable: bool,
        sealed: Sequence[SegmentEntry] = (),
        expected_steps: int | None = None,
    ) -> None:
        self.directory = directory
        self.timer = FlushTimer(flush_every)
        self._file: tuple[int, tuple[int, int]] | None = None  # descriptor and identity of the file being written
        self._header, self._header_document = header, header_to_json(header)
        self._segment_bytes, self._durable = segment_bytes, durable
        self._held = HeldStates(codec)
        self._segment: SegmentWriter | None = None
        self._sealed = list(sealed)
        self._steps = sum(entry.steps for entry in sealed)
        self._state_bytes = 0  # of the states in sealed segments
        self._board = StatusBoard(directory, self._steps, expected_steps)

    def add(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool) -> list[FlatState]:
        """Add a step and the state before it.

        Returns:
            The flat buffers that are free again, of this step or earlier ones.

        Raises:
            ConfigurationError: It is not the step that comes next.
            UnsupportedRunError: It holds something that no reader would read back.
        """
        if step.index != self._steps:
            raise ConfigurationError(
                f"step {step.index} was to be stored, expected step {self._steps}: steps are recorded in order, each "
                "once"
            )
        encoded = _encoded(step)
        if self._segment is not None and not self._segment.accepts(layout, with_batches=bool(encoded.batches)):
            self._seal()
        if self._segment is None:
            self._begin(layout, sum(map(len, encoded.batches)))
        assert self._segment is not None
        patterns = state_patterns(flat)
        self._segment.add(encoded, self._segment.checksum.of_patterns(patterns), patterns if store else None)
        self._steps += 1
        if store:
            self._board.add_state(row_bytes(layout))
        self.timer.add_step()
        if self.timer.due:
            self.flush()
        return self._held.add(layout, flat) if store else [(layout, flat)]

    def flush(self) -> None:
        """Make everything added so far survive the death of the process."""
        if self._segment is not None and self.timer.steps:
            self._segment.flush(durable=self._durable)
            if self.directory.has_end:  # the run goes on after its end, and from now on safely
                self.directory.end.unlink()
                sync_file(self.directory.path)
            self._board.tell(self._steps)
        self.timer.reset()

    def sizes(self) -> LogSizes:
        """Return the sizes of the log with all that was added."""
        self.flush()
        now = 0 if self._segment is None else self._segment.state_bytes
        return LogSizes(total=self.directory.size_bytes(), states=self._state_bytes + now)

    def finish(
        self, layout: Layout, flat: Mapping[str, Tensor], *, average: Mapping[str, Tensor] | None, reason: str
    ) -> None:
        """Seal, and write the end mark with the state after the last step."""
        self._seal()
        self._end(reason, (layout, flat), average)

    def abandon(self, reason: str) -> None:
        """Seal, and write an end mark without a state; a log without a step leaves nothing behind, and one that was not
        continued after all stays what it was. Nothing happens to a log that was ended."""
        if not self.directory.is_held:
            return
        self._seal()
        if self._steps and not self.directory.has_end:
            self._end(reason, None, None)
        self.close()

    def rescue(self) -> None:
        """After a failed write: leave what was flushed as it is on the disk, and HDF5 nothing that would fail again.

        The segment stays unsealed. Nobody knows what HDF5 has still in its hands, so it is given no chance to write it.
        """
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.discard()
        self.close()

    def disown(self) -> None:
        """Make sure that no exit handler writes to the file: in a forked child, and after an error.

        A fork may come while the writer thread closes the file. Its descriptor may then belong to another file, such as
        a pipe of the forked process, so the file is recognised by more than that.
        """
        if self._file is not None and identity(self._file[0]) == self._file[1]:
            redirect(self._file[0])

    def close(self) -> None:
        """Give reserve and lock back."""
        self._file = None
        self.directory.release()

    def _begin(self, layout: Layout, batch_bytes: int) -> None:
        self.directory.reserve(2 * (row_bytes(layout) + batch_bytes) + _RESERVE_SLACK)
        codec, short = self._held.choose_codec(layout)
        self._segment = SegmentWriter(
            self.directory.live(self._steps),
            self._steps,
            run_id=self._header.run_id,
            header=self._header_document,
            layout=layout,
            codec=codec,
            segment_bytes=self._segment_bytes,
            short=short,
            batch_bytes=batch_bytes,
        )
        descriptor = self._segment.descriptor
        self._file = descriptor, identity(descriptor)

    def _seal(self) -> None:
        if self._segment is not None:
            self.flush()
            self._state_bytes += self._segment.state_bytes
            self._sealed.append(self._segment.seal(self.directory.sealed(self._segment.first)))
            self._segment, self._file = None, None

    def _end(
        self,
        reason: str,
        final: tuple[Layout, Mapping[str, Tensor]] | None,
        average: Mapping[str, Tensor] | None,
    ) -> None:
        self.directory.free_reserve()
        write_end_mark(
            self.directory,
            header=self._header,
            steps=self._steps,
            reason=reason,
            segments=tuple(self._sealed),
            final=final,
            average=average,
        )
        self.close()


def _encoded(step: Step) -> EncodedStep:
    try:
        return encode_step(step)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedRunError(f"step {step.index} holds something that no log can hold: {error}") from error
