"""Record a run: states and steps go in, a background thread stores them."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, LogWriteError
from lightning_sgdinf.log.codec_choice import CodecChoice
from lightning_sgdinf.log.codecs import check_codec
from lightning_sgdinf.log.directory import WritableDirectory
from lightning_sgdinf.log.end_mark import SegmentEntry
from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.recovery import cut
from lightning_sgdinf.log.segment_writer import SEGMENT_BYTES
from lightning_sgdinf.log.store import LogSizes, LogStore
from lightning_sgdinf.log.write_queue import Job, WriteQueue
from lightning_sgdinf.log.writer_thread import WriterThread, let_go, living, watch_process
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.state import Layout

_GATHERED = 4  # steps that the writer is woken for


class LogWriter:
    """Writes the log of one run.

    Usage, for each optimizer step::

        flat = writer.take_buffers(layout)
        layout.pack(state_before, flat)
        ...                                   # the optimizer steps
        writer.put(step, layout, flat)

    and at the end ``writer.finish(layout, flat)`` with the state after the last step. All of HDF5 happens in one
    background thread; when it falls behind, `take_buffers` waits. Nothing is dropped. An error of the thread is
    raised by the next call. Passing the same `Layout` object each time saves comparing it.

    An exception may come between any two instructions of the thread that calls, as ``KeyboardInterrupt`` does, and a
    signal's handler may call in here. A call that was interrupted can be made again with the same arguments: what it
    had done already is not done twice.

    Args:
        path: Directory to make; by convention its name ends in ``.tlog``.
        header: Of the run.
        codec: Of the states, always without loss: ``"delta"`` (differences, Blosc-LZ4), ``"small"``
            (differences, Zstandard: fewer bytes, slower), ``"delta2"`` (second differences, Zstandard: for momentum and
            Adam), ``"none"`` (plain values, readable with any HDF5 tool), or ``"auto"``: for each segment what a trial
            finds best.
        overwrite: Delete a log that is at ``path``. Never deletes anything that is not a log.
        continue_at: Continue the log of the header's run that is at ``path`` with this step; what it has from there on
            is dropped.
        expected_steps: Of the whole run, for those who watch it.
        flush_every: Steps between flushes, >= 1; also a second or two after a step. What was flushed survives
            ``kill -9``.
        segment_bytes: Bytes of uncompressed states per segment file.
        queue_bytes: Bytes of states that may wait to be written; at least two states may.
        durable: Wait for the disk at every flush, so that it survives a power failure; sealed segments always do.
        when_full: Reaction to a write that fails, as on a full disk: ``"raise"``, or ``"stop_logging"``, which warns
            once, lets training go on, and leaves a log without an end.

    Raises:
        ConfigurationError: An argument that cannot work.
        LogExistsError: The path is taken.
        LogNotFoundError: There is no log to continue.
        ResumeError: The log to continue is of another run, or ends before that step.
        LogLockedError: Another process is writing there.
        LogWriteError: Nothing can be written there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        header: Header,
        codec: str = "delta",
        overwrite: bool = False,
        continue_at: int | None = None,
        expected_steps: int | None = None,
        flush_every: int = 16,
        segment_bytes: int = SEGMENT_BYTES,
        queue_bytes: int = 512 << 20,
        durable: bool = False,
        when_full: Literal["raise", "stop_logging"] = "raise",
    ) -> None:
        if when_full not in ("raise", "stop_logging"):
            raise ConfigurationError(f"when_full is {when_full!r}, expected 'raise' or 'stop_logging'")
        if flush_every < 1 or segment_bytes < 1 or queue_bytes < 1:
            given = f"flush_every={flush_every}, segment_bytes={segment_bytes}, queue_bytes={queue_bytes}"
            raise ConfigurationError(f"{given}: expected >= 1")
        check_codec(codec)
        choice = CodecChoice(codec)
        self.path = Path(path)
        self.stopped = ""
        self._raises = when_full == "raise"
        self._next = continue_at or 0
        self._put: Step | None = None  # the last step that was put, or is about to be
        self._ending: Job | None = None
        self._process = os.getpid()
        self._queue = WriteQueue(queue_bytes, held=choice.held, gathered=min(_GATHERED, flush_every))
        directory: WritableDirectory | None = None
        try:
            directory, sealed = _take_directory(path, header.run_id, continue_at, overwrite=overwrite)
            self._store = LogStore(
                directory,
                header=header,
                codec=choice,
                flush_every=flush_every,
                segment_bytes=segment_bytes,
                durable=durable,
                sealed=sealed,
                expected_steps=expected_steps,
            )
            self._thread = WriterThread(self._store, self._queue)
            watch_process()
            living.add(self._thread)
            self._close = weakref.finalize(self, let_go, self._thread)
            self._close.atexit = False
            self._thread.start()
        except BaseException:
            self._queue.close()
            for thread in [thread for thread in living if thread.queue is self._queue]:
                thread.call_off()
            if directory is not None:
                directory.release()
            raise

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return a free set of flat buffers to pack a state into; waits while all are under way.

        Args:
            layout: Of the state to come.

        Returns:
            Uninitialised CPU tensors as `Layout.empty` makes them. They belong to the caller until `put` or `finish`.

        Raises:
            ConfigurationError: The layout has a dtype that a log cannot hold.
            LogWriteError: The writer thread has failed.
        """
        self._check_process()
        try:
            return self._queue.take_buffers(layout)
        except LogWriteError as error:
            self._failed(error)
            return layout.empty()

    def lanes(self, layout: Layout) -> dict[str, Tensor]:
        """Return what `take_buffers` does: the name before release 0.2."""
        warn_renamed("LogWriter.lanes", "LogWriter.take_buffers")
        return self.take_buffers(layout)

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None:
        """Record a step and the state before it.

        Args:
            step: Its ``index`` must be one more than that of the step before, the first 0.
            layout: Of the state.
            flat: From `take_buffers`, packed; must not be touched any more.
            store: Store the state; otherwise only its checksum is.

        Raises:
            ConfigurationError: A step out of order.
            LogWriteError: An earlier write failed.
        """
        self._check_process()
        if step is self._put and step.index == self._next - 1:
            return  # again, after an interrupt
        if step.index != self._next:
            raise ConfigurationError(
                f"step {step.index} was put, expected step {self._next}: steps are recorded in order"
            )
        self._put = step
        self._queue.buffers.adopt(flat)
        self._submit(Job(partial(self._thread.add, step, layout, flat, store)), may_wait=True)
        self._next = step.index + 1

    def flush(self) -> None:
        """Wait until all that was put survives the death of this process.

        Raises:
            LogWriteError: Writing failed.
        """
        self._check_process()
        self._wait(self._submit(Job(self._store.flush)))

    def sizes(self) -> LogSizes:
        """Return the sizes of the log with all that was put.

        Raises:
            LogWriteError: Writing failed.
        """
        self._check_process()
        measured: list[LogSizes] = []
        self._wait(self._submit(Job(lambda: measured.append(self._store.sizes()))))
        return measured[0] if measured else LogSizes(total=0, states=0)

    def finish(
        self,
        layout: Layout,
        flat: dict[str, Tensor],
        *,
        average: Mapping[str, Tensor] | None = None,
        reason: str = "completed",
    ) -> None:
        """Record the state after the last step, seal the log and release it.

        Args:
            layout: Of the state.
            flat: From `take_buffers`, packed.
            average: Averaged parameters by name, if a weight-averaging callback was in use.
            reason: Of the end.

        Raises:
            LogWriteError: Writing failed; everything flushed before stays readable.
        """
        self._check_process()
        self._end_with(partial(self._store.finish, layout, flat, average=average, reason=reason))

    def abandon(self, reason: str) -> None:
        """Seal what there is, without a state after the last step. Harmless after an error; after `finish`, it is
        that which is done.

        Args:
            reason: Why; readers see it.

        Raises:
            LogWriteError: Writing failed.
        """
        self._check_process()
        if self._queue.closed or self._queue.error is not None:
            return
        self._end_with(partial(self._store.abandon, reason))

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"the writer of {self.path} owns a thread and an open file and cannot be pickled or copied; keep it out of "
            "what is sent to other processes"
        )

    def _submit(self, job: Job, *, may_wait: bool = False) -> Job | None:
        """Queue a job and return it; ``None`` if logging has stopped."""
        if self.stopped:
            return None
        try:
            self._queue.submit(job, may_wait=may_wait)
        except LogWriteError as error:
            self._failed(error)
            return None
        return job

    def _wait(self, job: Job | None) -> None:
        if job is None:
            return
        try:
            self._queue.wait_for(job)
        except LogWriteError as error:
            self._failed(error)

    def _end_with(self, action: Callable[[], object]) -> None:
        """End the log, once: if that was begun and interrupted, go on with it."""
        if self._ending is None:
            self._ending = Job(action)
        if not self._ending.done:
            self._wait(self._submit(self._ending))
        self._queue.close()
        self._queue.wait_for_end()
        self._close.detach()

    def _failed(self, error: LogWriteError) -> None:
        """Raise what the queue has raised; if the writer has failed and is to stop logging then, stop."""
        if self._raises or not self._queue.failed:
            raise LogWriteError(f"{self.path}: {error}") from error
        if not self.stopped:
            self.stopped = str(error)
            warnings.warn(f"{self.path}: {error}; training goes on without a log", stacklevel=4)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise LogWriteError(
                f"the writer of {self.path} belongs to process {self._process} and was used in {os.getpid()}; record "
                "in the process that trains"
            )


def _take_directory(
    path: str | os.PathLike[str], run_id: str, continue_at: int | None, *, overwrite: bool
) -> tuple[WritableDirectory, list[SegmentEntry]]:
    """Return the directory, and the segments that stay."""
    for thread in list(living):  # lost writers, which are about to seal theirs
        if thread.queue.closed and os.path.realpath(thread.store.directory.path) == os.path.realpath(path):
            thread.queue.wait_for_end()
    if continue_at is None:
        return WritableDirectory(path, present="delete" if overwrite else "refuse"), []
    directory = WritableDirectory(path, present="keep")
    try:
        return directory, cut(directory, run_id, continue_at)
    except BaseException:
        directory.release()
        raise
