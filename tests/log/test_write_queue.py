"""Which jobs the writer is woken for. Nobody waits here: what would wait is asked with a timeout of zero."""

from functools import partial

import pytest
import torch

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log.write_queue import Handover
from lightning_sgdinf.state import Layout, ModelState

LAYOUT = Layout.of(ModelState(params={"w": torch.zeros(4)}))


def queued(handover, count, **options):
    done = []
    for number in range(count):
        handover.submit(partial(done.append, number), **options)
    return done


def take(handover, count):
    """Do so many jobs, which must be there at once."""
    for _ in range(count):
        handover.next_job(timeout=0)()
        handover.done()


def test_the_writer_wakes_for_several_jobs_that_may_wait():
    handover = Handover(1 << 20, held=1, gathered=3)
    done = queued(handover, 2, may_wait=True)
    assert not handover._hurry
    queued(handover, 1, may_wait=True)
    assert handover._hurry
    take(handover, 3)
    assert done == [0, 1]
    assert handover.next_job(timeout=0) is None
    assert not handover._hurry  # all is done: the next ones gather again


@pytest.mark.parametrize("hurry", [lambda h: h.submit(list), lambda h: h.close()])
def test_a_job_that_may_not_wait_and_the_end_take_the_others_along(hurry):
    handover = Handover(1 << 20, held=1, gathered=3)
    done = queued(handover, 2, may_wait=True)
    hurry(handover)
    assert handover._hurry or handover.closed
    take(handover, 2)
    assert done == [0, 1]


def test_jobs_that_have_waited_long_enough_are_done_together():
    handover = Handover(1 << 20, held=1, gathered=3)
    done = queued(handover, 2, may_wait=True)
    assert not handover._hurry
    handover.next_job(timeout=0)()  # the time is over
    assert handover._hurry
    take(handover, 1)
    assert done == [0, 1]


def test_who_needs_lanes_does_not_wait_for_a_writer_that_waits_for_jobs(monkeypatch):
    handover = Handover(queue_bytes=1, held=1, gathered=100)
    mine = [handover.take_lanes(LAYOUT) for _ in range(4)]  # before and after a step, one on its way, one held
    handover.submit(lambda: handover.give_back(LAYOUT, mine.pop()), may_wait=True)

    def write_meanwhile(timeout):
        assert handover._hurry
        handover.next_job(timeout=0)()

    monkeypatch.setattr(handover._changed, "wait", write_meanwhile)
    assert handover.take_lanes(LAYOUT).keys() == {"float32"}


def test_nothing_is_taken_after_the_end():
    handover = Handover(1 << 20, held=1)
    handover.close()
    assert handover.drained
    with pytest.raises(LogWriteError, match="closed"):
        handover.submit(list)
