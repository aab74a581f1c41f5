"""Some of the interrupts that `make faults` does to a recorder at every instruction."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sgdinf.log import write_queue, writer_thread
from lightning_sgdinf.log.reader import RunLog
from lightning_sgdinf.log.writer import LogWriter
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.optimizer_steps import OptimizerSteps
from tests.log.cases import make_header, write_run
from tests.log.faults.interrupts import (
    KINDS,
    Fit,
    Place,
    Truth,
    at_place,
    chosen,
    every_instruction,
    instructions,
    name_of,
    raise_interrupt,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, list[Place]]:
    place = tmp_path_factory.mktemp("uninterrupted")
    Fit.make(place / "truth").run()
    return Truth.of(place / "truth"), instructions(Fit.make(place / "probe"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(3))
def test_a_log_tells_the_truth_whenever_a_signal_comes(
    uninterrupted: tuple[Truth, list[Place]], tmp_path: Path, kind: str, number: int
) -> None:
    truth, places = uninterrupted
    rng = np.random.default_rng((number, len(kind)))
    KINDS[kind](tmp_path / "run", chosen(places, rng, 1)[0], truth)


@pytest.mark.parametrize(
    ("file", "name"), [("step_delivery.py", "flush"), ("writer.py", "flush"), ("write_queue.py", "wait_for_end")]
)
def test_a_checkpoint_saved_within_a_flush_or_the_end_has_a_bookmark(
    uninterrupted: tuple[Truth, list[Place]], tmp_path: Path, file: str, name: str
) -> None:
    truth, places = uninterrupted
    within = [place for place in places if Path(place[0]).name == file and place[2].rpartition(".")[2] == name]
    middle = within[len(within) // 2]
    KINDS["a checkpoint is saved in a signal's handler at any instruction"](tmp_path / "run", middle, truth)


def test_a_writer_interrupted_while_it_is_made_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "_PATIENCE_SECONDS", 5.0)  # otherwise ten minutes, and then it would go on
    path = tmp_path / "run.tlog"
    every: list[Place] = []
    with every_instruction(every.append):
        LogWriter(path, header=make_header()).abandon("done")
    making = [
        place for place in every if Path(place[0]).name.startswith("writer") and place[2] in ("__init__", "start")
    ]
    assert len(making) > 100
    kept: list[KeyboardInterrupt] = []
    owned = 0
    for place in making[-120:]:  # from where it has the directory
        try:
            with every_instruction(at_place(place, raise_interrupt)):
                LogWriter(path, header=make_header(), overwrite=True).abandon("not interrupted")
        except KeyboardInterrupt as error:
            kept.append(error)  # as a trainer does; with it the writer lives on
        if not all(thread.queue.closed for thread in writer_thread.living):  # it was made: it ends with its owner
            kept.clear()
            owned += 1
        for thread in list(writer_thread.living):
            thread.queue.wait_for_end()
            assert thread.queue.ended, name_of(place)
        write_run(path, 2, overwrite=True)
        with RunLog.open(path) as log:
            assert (len(log), log.finished) == (2, True), name_of(place)
    assert owned <= 2


def test_hooks_whose_making_was_interrupted_can_be_taken_off() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)

    def steps() -> OptimizerSteps:
        return OptimizerSteps(optimizer, guard=Guard(strict=True), names=dict, before=int, after=int)

    every: list[Place] = []
    recorded = steps()
    with every_instruction(every.append):
        recorded.attach()
    recorded.remove()
    within = [place for place in every if place[2] == "attach"]
    assert len(within) > 20
    for place in within:
        recorded = steps()
        with suppress(KeyboardInterrupt), every_instruction(at_place(place, raise_interrupt)):
            recorded.attach()
        recorded.remove()
        assert not optimizer._optimizer_step_post_hooks, name_of(place)
        assert not optimizer._optimizer_step_pre_hooks, name_of(place)
