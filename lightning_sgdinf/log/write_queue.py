"""Between the training thread and the writer thread: jobs one way, flat buffers both ways, errors back.

The two share one interpreter, and each time the writer wakes up the training thread may have to wait for it. So steps
are left to gather, a few of them, unless somebody waits for something.

A signal's handler may raise between any two bytecodes of the training thread, or call in here once more. So that
thread never holds a lock across two of them: a job is queued by a single ``append``, which has happened or has not, and
to wait is a single ``SimpleQueue.get`` with a time limit. A job may be queued twice; it is done once.

A handler may also find that thread inside of h5py, reading examples: then the writer cannot get on before the handler
ends, so nothing is waited for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from torch import Tensor

from lightning_sgdinf.errors import LogWriteError, UnsupportedRunError
from lightning_sgdinf.log.bit_patterns import row_bytes
from lightning_sgdinf.log.hdf5 import holds_lock
from lightning_sgdinf.state import Layout

_LOOK_AGAIN_SECONDS = 1.0  # how often a waiting thread makes sure that the other one is alive
_PATIENCE_SECONDS = 600.0  # with a disk that does not answer
_MIN_SETS, _MAX_SETS = 2, 8  # before and after a step; beside those that the writer holds


@dataclass(slots=True, eq=False)
class Job:
    """Something for the writer to do, once.

    Attributes:
        action: Called in the writer's thread.
        done: It has been.
        bell: Rings when it has been.
    """

    action: Callable[[], object]
    done: bool = False
    bell: SimpleQueue[None] = field(default_factory=SimpleQueue)

    def run(self) -> None:
        """Do it, unless it has been done."""
        if not self.done:
            self.action()
            self.done = True
        self.bell.put(None)


@dataclass(slots=True, eq=False)
class _Pool:
    """The sets of flat buffers of one layout.

    Attributes:
        layout: Of the states.
        capacity: Sets that there may be at once, those of earlier layouts among them.
        free: Those that nobody uses.
    """

    layout: Layout
    capacity: int
    free: SimpleQueue[dict[str, Tensor]] = field(default_factory=SimpleQueue)

    def fits(self, layout: Layout) -> bool:
        """Tell if it is the pool of a layout."""
        return self.layout is layout or self.layout == layout


class StateBuffers:
    """The sets of flat buffers, of the present layout and those of earlier ones that are still in use.

    Args:
        size_bytes: Bytes of states that may wait.
        held: Sets that the writer keeps for itself.
    """

    def __init__(self, size_bytes: int, held: int) -> None:
        self._size_bytes, self._held = size_bytes, held
        self._pool: _Pool | None = None
        self._known: set[int] = set()  # all that there are, by id

    def __len__(self) -> int:
        """Return the number of sets that there are."""
        return len(self._known)

    def of(self, layout: Layout) -> _Pool:
        """Return those of a layout, which is the present one from now on."""
        pool = self._pool
        if pool is None or not pool.fits(layout):
            wanted = self._size_bytes // max(1, row_bytes(layout))
            before, capacity = pool, min(_MAX_SETS, max(_MIN_SETS, wanted)) + self._held
            pool = self._pool = _Pool(layout, capacity)
            with suppress(Empty):
                while before is not None:
                    self._known.discard(id(before.free.get_nowait()))
        return pool

    def take(self, pool: _Pool) -> dict[str, Tensor] | None:
        """Return a set that is free, or may be made; ``None`` if there is none."""
        with suppress(Empty):
            return pool.free.get_nowait()
        if len(self._known) >= pool.capacity:
            return None
        made = pool.layout.empty()
        self._known.add(id(made))
        return made

    def adopt(self, flat: dict[str, Tensor]) -> None:
        """Count a set that was made elsewhere, before there was a writer."""
        self._known.add(id(flat))

    def give_back(self, layout: Layout, flat: dict[str, Tensor]) -> None:
        """Take a set that is free again."""
        pool = self._pool
        if pool is not None and pool.fits(layout):
            pool.free.put(flat)
        else:
            self._known.discard(id(flat))


class _Alarm:
    """Wakes the writer."""

    def __init__(self) -> None:
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._rung = False

    @property
    def rung(self) -> bool:
        """True if it rings."""
        return not self._bell.empty()

    def ring(self) -> None:
        """Wake the writer, if that has not been done."""
        if not self._rung:
            self._rung = True  # if an exception comes now, the writer looks by itself within a second
            self._bell.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until it rings, or so long."""
        with suppress(Empty):
            self._bell.get(timeout=seconds)
        self._rung = False


class WriteQueue:
    """A queue of jobs whose states lie in a bounded number of sets of flat buffers.

    Args:
        queue_bytes: Bytes of states that may wait.
        held: Sets that the writer keeps for itself.
        gathered: Jobs that may wait, for which the writer is woken.

    Attributes:
        buffers: The sets of flat buffers.
        progress: Number of jobs that are done.
        error: What the writer ran into.
        ended: The writer's thread is over, or will never begin.
    """

    def __init__(self, queue_bytes: int, held: int, gathered: int = 1) -> None:
        self._gathered = gathered
        self.buffers = StateBuffers(queue_bytes, held)
        self._jobs: deque[Job] = deque()  # the first is under way
        self._closed = False
        self._alarm = _Alarm()
        self._awake = False
        self._farewell: SimpleQueue[None] = SimpleQueue()
        self.progress = 0
        self.error: BaseException | None = None
        self.ended = False

    # The training thread's side -------------------------------------------------------------------------------

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return a free set of flat buffers; waits for one.

        Raises:
            ConfigurationError: A dtype that a log cannot hold.
            LogWriteError: The writer has failed.
        """
        self._require_open()
        pool = self.buffers.of(layout)
        patience = _Patience(self)
        while True:
            idle = not self._jobs
            if (taken := self.buffers.take(pool)) is not None:
                return taken
            self.check()
            if idle:  # nobody will give one back: more are in use, or an interrupt has lost some
                pool.capacity += 1
                continue
            self._alarm.ring()
            patience.check()
            with suppress(Empty):
                return pool.free.get(timeout=_LOOK_AGAIN_SECONDS)

    def submit(self, job: Job, *, may_wait: bool = False) -> None:
        """Queue a job.

        Args:
            job: May have been queued before, if it is not known whether it was.
            may_wait: For others, up to a second.

        Raises:
            LogWriteError: The writer has failed, or is closed.
        """
        self._require_open()
        self._jobs.append(job)
        if not may_wait or len(self._jobs) >= self._gathered:
            self._alarm.ring()

    def wait_for(self, job: Job) -> None:
        """Wait until a job is done.

        Raises:
            LogWriteError: It, or one before it, failed, or the disk does not answer.
        """
        patience = _Patience(self)
        while not job.done:
            self.check()
            patience.check()
            with suppress(Empty):
                job.bell.get(timeout=_LOOK_AGAIN_SECONDS)

    def close(self) -> None:
        """Take no more jobs; the writer ends when it has done those it has."""
        self._closed = True
        self._alarm.ring()

    def wait_for_end(self) -> None:
        """Wait until the writer's thread is over, or the disk does not answer."""
        patience = _Patience(self)
        with suppress(LogWriteError):
            while not self.ended:
                patience.check()
                with suppress(Empty):
                    self._farewell.get(timeout=_LOOK_AGAIN_SECONDS)

    @property
    def failed(self) -> bool:
        """True if the writer has run into something, or its thread is gone before its work is done."""
        return self.error is not None or (self.ended and (bool(self._jobs) or not self._closed))

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def check(self) -> None:
        """Raise what the writer ran into.

        Raises:
            LogWriteError: It has failed.
            UnsupportedRunError: It was given something that no log can hold.
        """
        if isinstance(self.error, UnsupportedRunError):  # not the disk's fault: whoever records goes on without it
            raise UnsupportedRunError(f"{self.error}; what was flushed before is readable") from self.error
        if self.error is not None:
            reason = f"{type(self.error).__name__}: {' '.join(str(self.error).split())}"
            raise LogWriteError(
                f"writing the log failed: {reason}; what was flushed before is readable. Free some space, or "
                "mend what else is wrong, and resume from a checkpoint"
            ) from self.error
        if self.failed:
            raise LogWriteError(
                "the thread that writes the log is gone; what was flushed before is readable. Resume from a checkpoint"
            )

    def _require_open(self) -> None:
        self.check()
        if self._closed:
            raise LogWriteError("the log is closed: nothing can be written after finish or abandon")

    # The writer thread's side ---------------------------------------------------------------------------------

    def next_job(self, timeout: float | None) -> Job | None:
        """Return the next job; ``None`` after ``timeout`` seconds, when all is done, or when closed and empty."""
        if not self._awake:
            self._alarm.wait(_LOOK_AGAIN_SECONDS if timeout is None else timeout)
            self._awake = True
        if not self._jobs:
            self._awake = False
            return None
        return self._jobs[0]

    @property
    def drained(self) -> bool:
        """True if there is and will be nothing to do, or nobody waits for it any more."""
        return (self._closed and not self._jobs) or self.error is not None

    def remove_done(self) -> None:
        """Remove the first job, which is done."""
        self._jobs.popleft()
        self.progress += 1

    def fail(self, error: BaseException) -> None:
        """Note that the writer cannot go on; drop what is queued."""
        self.error = error
        while self._jobs:
            self._jobs.popleft().bell.put(None)

    def end(self) -> None:
        """Note that the writer's thread is over."""
        self.ended = True
        for job in list(self._jobs):
            job.bell.put(None)
        self._farewell.put(None)


class _Patience:
    """Gives up on a writer that does not get on."""

    def __init__(self, queue: WriteQueue) -> None:
        self._queue = queue
        self._seen, self._since = queue.progress, time.monotonic()

    def check(self) -> None:
        """Raise if nothing has been done for long, or nothing can be done.

        Raises:
            LogWriteError: The disk does not answer; or this thread holds the lock that the writer needs.
        """
        if holds_lock():
            raise LogWriteError(
                "nothing can be written while this thread is inside of h5py, where a signal has interrupted it; what "
                "was flushed before is readable. Ask again when the signal has been handled"
            )
        now = time.monotonic()
        if self._queue.progress != self._seen:
            self._seen, self._since = self._queue.progress, now
        if now - self._since > _PATIENCE_SECONDS:
            self._queue.error = TimeoutError(f"the disk has not answered for {now - self._since:.0f} s")
            self._queue.check()
