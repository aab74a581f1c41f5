"""Which jobs the writer is woken for. Nobody waits here: what would wait is asked with a timeout of zero."""

from functools import partial

import pytest
import torch

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log.write_queue import WriteQueue
from lightning_sgdinf.state import Layout, ModelState

LAYOUT = Layout.of(ModelState(params={"w": torch.zeros(4)}))


def queued(queue, count, **options):
    done = []
    for number in range(count):
        queue.submit(partial(done.append, number), **options)
    return done


def take(queue, count):
    """Do so many jobs, which must be there at once."""
    for _ in range(count):
        queue.next_job(timeout=0)()
        queue.done()


def test_the_writer_wakes_for_several_jobs_that_may_wait():
    queue = WriteQueue(1 << 20, held=1, gathered=3)
    done = queued(queue, 2, may_wait=True)
    assert not queue._wake
    queued(queue, 1, may_wait=True)
    assert queue._wake
    take(queue, 3)
    assert done == [0, 1]
    assert queue.next_job(timeout=0) is None
    assert not queue._wake  # all is done: the next ones gather again


@pytest.mark.parametrize("wake", [lambda q: q.submit(list), lambda q: q.close()])
def test_a_job_that_may_not_wait_and_the_end_take_the_others_along(wake):
    queue = WriteQueue(1 << 20, held=1, gathered=3)
    done = queued(queue, 2, may_wait=True)
    wake(queue)
    assert queue._wake or queue.closed
    take(queue, 2)
    assert done == [0, 1]


def test_jobs_that_have_waited_long_enough_are_done_together():
    queue = WriteQueue(1 << 20, held=1, gathered=3)
    done = queued(queue, 2, may_wait=True)
    assert not queue._wake
    queue.next_job(timeout=0)()  # the time is over
    assert queue._wake
    take(queue, 1)
    assert done == [0, 1]


def test_who_needs_buffers_does_not_wait_for_a_writer_that_waits_for_jobs(monkeypatch):
    queue = WriteQueue(queue_bytes=1, held=1, gathered=100)
    mine = [queue.take_buffers(LAYOUT) for _ in range(4)]  # before and after a step, one on its way, one held
    queue.submit(lambda: queue.give_back(LAYOUT, mine.pop()), may_wait=True)

    def write_meanwhile(timeout):
        assert queue._wake
        queue.next_job(timeout=0)()

    monkeypatch.setattr(queue._changed, "wait", write_meanwhile)
    assert queue.take_buffers(LAYOUT).keys() == {"float32"}


def test_nothing_is_taken_after_the_end():
    queue = WriteQueue(1 << 20, held=1)
    queue.close()
    assert queue.drained
    with pytest.raises(LogWriteError, match="closed"):
        queue.submit(list)
