"""Between the training thread and the writer thread: jobs one way, flat buffers both ways, errors back.

The two share one interpreter, and each time the writer wakes up the training thread may have to wait for it. So steps
are left to gather, a few of them, unless somebody waits for something.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log.bit_patterns import row_bytes
from lightning_sgdinf.state import Layout

_LOOK_AGAIN_SECONDS = 1.0  # how often a waiting thread makes sure that the other one is alive
_MIN_SETS, _MAX_SETS = 3, 8  # before and after a step, and one on its way


@dataclass(slots=True, eq=False)
class _Pool:
    """The sets of flat buffers of one layout; at most ``capacity`` exist."""

    layout: Layout
    capacity: int
    made: int = 0
    free: list[dict[str, Tensor]] = field(default_factory=list)


class WriteQueue:
    """A queue of jobs whose states lie in a bounded number of sets of flat buffers.

    Args:
        queue_bytes: Bytes of states that may wait.
        held: Sets that the writer keeps for itself.
        gathered: Jobs that may wait, for which the writer is woken.
    """

    def __init__(self, queue_bytes: int, held: int, gathered: int = 1) -> None:
        self._queue_bytes, self._held, self._gathered = queue_bytes, held, gathered
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], object]] = deque()
        self._pool: _Pool | None = None
        self._closed = False
        self._wake = False  # do what is queued
        self._done = 0
        self._submitted = 0
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None

    # The training thread's side -------------------------------------------------------------------------------

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return a free set of flat buffers; waits for one.

        Raises:
            ConfigurationError: A dtype that a log cannot hold.
            LogWriteError: The writer has failed.
        """
        with self._changed:
            self._require_open()
            pool = self._pool
            if pool is None or (pool.layout is not layout and pool.layout != layout):
                wanted = self._queue_bytes // max(1, row_bytes(layout))
                self._pool = _Pool(layout, min(_MAX_SETS, max(_MIN_SETS, wanted)) + self._held, made=1)
                return layout.empty()
            while not pool.free and pool.made >= pool.capacity:
                self.check()
                self._wake = True
                self._changed.notify_all()
                self._changed.wait(_LOOK_AGAIN_SECONDS)
            if pool.free:
                return pool.free.pop()
            pool.made += 1
        return layout.empty()

    def submit(self, job: Callable[[], object], *, may_wait: bool = False) -> int:
        """Queue a job and return its ticket.

        Args:
            job: Called in the writer's thread.
            may_wait: For others, up to a second.

        Raises:
            LogWriteError: The writer has failed, or is closed.
        """
        with self._changed:
            self._require_open()
            self._jobs.append(job)
            self._submitted += 1
            if not may_wait or len(self._jobs) >= self._gathered:
                self._wake = True
                self._changed.notify_all()
            return self._submitted

    def wait_for(self, ticket: int) -> None:
        """Wait until a job is done.

        Raises:
            LogWriteError: It, or one before it, failed.
        """
        with self._changed:
            while self._done < ticket:
                self.check()
                self._changed.wait(_LOOK_AGAIN_SECONDS)

    def close(self) -> None:
        """Take no more jobs; the writer ends when it has done those it has."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def check(self) -> None:
        """Raise what the writer ran into.

        Raises:
            LogWriteError: It has failed.
        """
        if self.error is not None:
            reason = f"{type(self.error).__name__}: {' '.join(str(self.error).split())}"
            raise LogWriteError(
                f"writing the log failed: {reason}; what was flushed before is readable. Free some space, or "
                "mend what else is wrong, and resume from a checkpoint"
            ) from self.error
        if self.thread is not None and not self.thread.is_alive() and (self._jobs or not self._closed):
            raise LogWriteError(
                "the thread that writes the log is gone; what was flushed before is readable. Resume from a checkpoint"
            )

    def _require_open(self) -> None:
        self.check()
        if self._closed:
            raise LogWriteError("the log is closed: nothing can be written after finish or abandon")

    # The writer thread's side ---------------------------------------------------------------------------------

    def next_job(self, timeout: float | None) -> Callable[[], object] | None:
        """Return the next job; ``None`` after ``timeout`` seconds, or when closed and empty."""
        with self._changed:
            self._wake &= bool(self._jobs)
            if not self._changed.wait_for(
                lambda: self._wake or self._closed, _LOOK_AGAIN_SECONDS if timeout is None else timeout
            ):
                self._wake = bool(self._jobs)
            return self._jobs.popleft() if self._jobs else None

    @property
    def drained(self) -> bool:
        """True if there is and will be nothing to do."""
        with self._changed:
            return self._closed and not self._jobs

    def done(self) -> None:
        """Count a job that is done."""
        with self._changed:
            self._done += 1
            self._changed.notify_all()

    def give_back(self, layout: Layout, flat: dict[str, Tensor]) -> None:
        """Take a set of flat buffers that is free again."""
        with self._changed:
            pool = self._pool
            if pool is not None and (pool.layout is layout or pool.layout == layout):
                pool.free.append(flat)
                self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Note that the writer cannot go on; drop what is queued."""
        with self._changed:
            self.error = error
            self._jobs.clear()
            self._changed.notify_all()
