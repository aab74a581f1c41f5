"""Which jobs the writer is woken for. Nobody waits here: what would wait is asked with a timeout of zero."""

from functools import partial
from queue import Empty

import pytest
import torch
from h5py._objects import phil

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log import write_queue
from lightning_sgdinf.log.write_queue import Job, WriteQueue
from lightning_sgdinf.state import Layout, ModelState

LAYOUT = Layout.of(ModelState(params={"w": torch.zeros(4)}))


def queued(queue, count, **options):
    done = []
    for number in range(count):
        queue.submit(Job(partial(done.append, number)), **options)
    return done


def rung(queue):
    return queue._alarm.rung


def take(queue, count):
    """Do so many jobs, which must be there at once."""
    for _ in range(count):
        queue.next_job(timeout=0).run()
        queue.remove_done()


def test_the_writer_wakes_for_several_jobs_that_may_wait():
    queue = WriteQueue(1 << 20, held=1, gathered=3)
    done = queued(queue, 2, may_wait=True)
    assert not rung(queue)
    queued(queue, 1, may_wait=True)
    assert rung(queue)
    take(queue, 3)
    assert done == [0, 1]
    assert queue.next_job(timeout=0) is None
    queued(queue, 1, may_wait=True)
    assert not rung(queue)  # all is done: the next ones gather again


@pytest.mark.parametrize("wake", [lambda q: q.submit(Job(list)), lambda q: q.close()])
def test_a_job_that_may_not_wait_and_the_end_take_the_others_along(wake):
    queue = WriteQueue(1 << 20, held=1, gathered=3)
    done = queued(queue, 2, may_wait=True)
    wake(queue)
    assert rung(queue)
    take(queue, 2)
    assert done == [0, 1]


def test_jobs_that_have_waited_long_enough_are_done_together():
    queue = WriteQueue(1 << 20, held=1, gathered=3)
    done = queued(queue, 2, may_wait=True)
    assert not rung(queue)
    take(queue, 2)  # the time is over
    assert done == [0, 1]


def test_who_needs_buffers_does_not_wait_for_a_writer_that_waits_for_jobs():
    queue = WriteQueue(queue_bytes=1, held=1, gathered=100)
    mine = [queue.take_buffers(LAYOUT) for _ in range(3)]  # before and after a step, one held
    queue.submit(Job(list), may_wait=True)
    pool = queue.buffers._pool

    class Free:
        """Gives nothing back before the writer has been woken."""

        def get_nowait(self):
            raise Empty

        def get(self, timeout):
            assert rung(queue)
            return mine.pop()

    pool.free = Free()
    assert queue.take_buffers(LAYOUT).keys() == {"float32"}
    assert len(queue.buffers) == 3


def test_buffers_that_an_interrupt_has_lost_are_made_anew():
    queue = WriteQueue(queue_bytes=1, held=1)
    for _ in range(10):  # more than there are, none comes back, and the writer has nothing to do
        assert queue.take_buffers(LAYOUT).keys() == {"float32"}


def test_a_job_that_is_queued_twice_is_done_once():
    queue, done = WriteQueue(1 << 20, held=1), []
    job = Job(partial(done.append, 1))
    queue.submit(job)
    queue.submit(job)
    take(queue, 2)
    queue.wait_for(job)
    assert done == [1]


def test_nothing_is_taken_after_the_end():
    queue = WriteQueue(1 << 20, held=1)
    queue.close()
    assert queue.drained
    with pytest.raises(LogWriteError, match="closed"):
        queue.submit(Job(list))


def test_who_waits_is_told_that_the_writer_has_failed_is_gone_or_does_not_get_on(monkeypatch):
    queues = [WriteQueue(1 << 20, held=1) for _ in range(3)]
    jobs = [Job(list) for _ in queues]
    for queue, job in zip(queues, jobs, strict=True):
        queue.submit(job)
    queues[0].fail(OSError("no space"))
    queues[1].end()
    monkeypatch.setattr(write_queue, "_LOOK_AGAIN_SECONDS", 0)
    monkeypatch.setattr(write_queue, "_PATIENCE_SECONDS", -1)
    for queue, job, said in zip(queues, jobs, ("no space", "is gone", "not answered"), strict=True):
        with pytest.raises(LogWriteError, match=said):
            queue.wait_for(job)


def test_nobody_waits_for_the_writer_inside_of_h5py():
    """As a signal's handler would, that comes while examples are read: the writer needs h5py's lock."""
    queue, done = WriteQueue(queue_bytes=1, held=0), []
    job = Job(partial(done.append, 1))
    mine = [queue.take_buffers(LAYOUT) for _ in range(2)]
    queue.submit(job)
    with phil:
        with pytest.raises(LogWriteError, match="inside of h5py"):
            queue.wait_for(job)
        with pytest.raises(LogWriteError, match="inside of h5py"):
            queue.take_buffers(LAYOUT)
        queue.close()
        queue.wait_for_end()
    take(queue, 1)
    assert (done, len(mine)) == ([1], 2)


def test_sets_of_buffers_are_counted_wherever_they_were_made_and_whatever_their_layout():
    queue = WriteQueue(queue_bytes=1, held=1)  # three: before and after a step, one held
    other = Layout.of(ModelState(params={"w": torch.zeros(5)}))
    early = [LAYOUT.empty(), other.empty()]
    for flat in early:
        queue.buffers.adopt(flat)
    queue.submit(Job(list), may_wait=True)
    pool = queue.buffers.of(other)
    assert queue.take_buffers(other)["float32"].shape == (5,)
    assert queue.buffers.take(pool) is None  # that of the earlier layout is still in use
    queue.buffers.give_back(LAYOUT, early[0])
    assert queue.take_buffers(other)["float32"].shape == (5,)
    assert queue.buffers.take(pool) is None
    queue.buffers.give_back(other, early[1])
    assert queue.take_buffers(other) is early[1]
    assert len(queue.buffers) == 3
