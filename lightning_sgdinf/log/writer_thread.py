"""The thread that writes a log, and what becomes of it when its owner, or the process, ends."""

from __future__ import annotations

import _thread
import atexit
import os
import weakref
from contextlib import suppress
from functools import cache

from torch import Tensor

from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.store import LogStore
from lightning_sgdinf.log.write_queue import WriteQueue
from lightning_sgdinf.state import Layout


class WriterThread:
    """Takes jobs until there are no more.

    Not a `threading.Thread`: an exception in its ``start`` or ``join`` leaves locks behind, or lets a living thread
    count as dead.
    """

    def __init__(self, store: LogStore, queue: WriteQueue) -> None:
        self.store, self.queue, self.process = store, queue, os.getpid()
        self.name = 0  # of the thread, once it runs
        self._leave = [None]  # to run: who takes it, once, decides
        self._last: Step | None = None

    def start(self) -> None:
        """Let it begin."""
        _thread.start_new_thread(self._live, ())

    def call_off(self) -> None:
        """Let it not begin, or end if it has: an exception in `start` does not tell which. Its queue is closed."""
        try:
            self._leave.pop()
        except IndexError:
            self.queue.wait_for_end()
        else:
            self.queue.end()
        living.discard(self)

    def _live(self) -> None:
        try:
            self._leave.pop()
        except IndexError:
            return
        self.name = _thread.get_ident()
        try:
            self.run()
        finally:
            self.queue.end()

    def run(self) -> None:
        """Do jobs; on an error leave what was flushed as it is, and report it."""
        try:
            while not self.queue.drained:
                job = self.queue.next_job(self.store.timer.seconds_left)
                if job is not None:
                    job.run()
                    self.queue.remove_done()
                    job = None
                elif self.store.timer.seconds_left == 0.0:
                    self.store.flush()
            self.store.abandon("the process ended before the run was finished")
        except BaseException as error:
            with suppress(Exception):
                self.store.rescue()
            self.queue.fail(error)

    def add(self, step: Step, layout: Layout, flat: dict[str, Tensor], store: bool) -> None:
        """Store a step, unless it is the last one again, and give back flat buffers that are not needed for the next
        difference."""
        if step is self._last:
            return
        self._last = step
        for free in self.store.add(step, layout, flat, store=store):
            self.queue.buffers.give_back(*free)


living: weakref.WeakSet[WriterThread] = weakref.WeakSet()


@cache
def watch_process() -> None:
    """Register for forks and for the end. Only now, so that the end comes before h5py's own."""
    os.register_at_fork(after_in_child=_disown)
    atexit.register(_close_all)


def _disown() -> None:
    """In a forked child: let go of the parent's lock, and let no exit handler write to the parent's file."""
    for thread in list(living):
        thread.store.disown()
        thread.store.directory.forget()
    living.clear()


def _close_all() -> None:
    """Abandon the logs that are unfinished when the interpreter ends."""
    for thread in list(living):
        if os.getpid() == thread.process and not thread.queue.ended:
            thread.queue.close()
            if thread.name not in (0, _thread.get_ident()):
                thread.queue.wait_for_end()


def let_go(thread: WriterThread) -> None:
    """Let the thread of a lost writer abandon its log. Nothing may wait here: a collection of garbage calls this in
    whatever thread it comes, while that may hold h5py's lock, which the writer needs."""
    if os.getpid() == thread.process and not thread.queue.ended:
        thread.queue.close()
