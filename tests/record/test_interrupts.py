"""Some of the interrupts that `make faults` does to a recorder at every instruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.log.faults.interrupts import KINDS, Fit, Place, Truth, chosen, instructions


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
