"""Progress of a run, from outside."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

import pytest

from lightning_sgdinf.errors import LogNotFoundError
from lightning_sgdinf.log import LogWriter, RunLog
from lightning_sgdinf.log.watch import Progress, progress, readable_bytes, watch
from tests.log.cases import make_header, make_state, make_step, put, write_run


def test_a_run_is_watched_to_its_end(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", 10, finish=False, expected_steps=40)

    def sleep(seconds: float) -> None:
        assert seconds == 7
        writer.abandon("it was enough")

    running, ended = watch(tmp_path / "run", seconds=7, sleep=sleep)
    assert (running.going_on, running.ended, running.steps, running.expected_steps) == (True, "", 10, 40)
    assert running.size_bytes > 0
    assert running.expected_bytes == 4 * running.size_bytes
    assert running.steps_per_second > 0
    assert running.seconds_left == pytest.approx(30 / running.steps_per_second)
    assert (ended.going_on, ended.ended, ended.steps) == (False, "it was enough", 10)


def test_a_continued_run_counts_from_where_it_was(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 10)
    writer = LogWriter(tmp_path / "run", header=make_header(), continue_at=10, expected_steps=20)
    put(writer, make_state(10), make_step(10))
    writer.flush()
    latest = progress(tmp_path / "run")
    assert (latest.going_on, latest.steps, latest.expected_steps) == (True, 11, 20)
    writer.abandon("")


def test_watching_touches_nothing_and_needs_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogNotFoundError):
        progress(tmp_path / "nowhere")
    writer = write_run(tmp_path / "run", 3, finish=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    for _ in range(20):
        assert progress(tmp_path / "run").steps == 3
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    put(writer, make_state(3), make_step(3))
    writer.flush()
    writer.abandon("")


def test_a_status_that_is_half_written_is_none(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 3)
    (tmp_path / "run" / "end.h5").unlink()
    for content in (b"", b"7@here", b'7@here\n{"steps": 3', b'7@here\n{"steps": 3}', b"\xff\n\xff", b"7@here\n[]"):
        (tmp_path / "run" / "LOCK").write_bytes(content)
        assert progress(tmp_path / "run").steps == 0


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(1e9, -3600)  # an hour back each time it is looked at
    monkeypatch.setattr(time, "time", lambda: next(clock))
    writer = write_run(tmp_path / "run", 40, finish=False, expected_steps=80, flush_every=1)
    running = progress(tmp_path / "run")
    assert running.steps > 0
    assert running.steps_per_second >= 0
    assert running.seconds_left is None or running.seconds_left > 0
    writer.abandon("it was enough")
    with RunLog.open(tmp_path / "run") as log:
        assert log.verify().ok
        assert len(log) == 39
    assert next(clock) < 1e9, "the test is degenerate: nobody looked"


def test_lines() -> None:
    running = Progress(
        going_on=True, ended="", steps=1234, size_bytes=52_100_000, expected_steps=15_640, steps_per_second=85.04
    )
    assert str(running) == "step 1234 of 15640 (8 %), 85 steps/s, 52.1 MB, about 660.3 MB at the end, 3 min left"
    assert str(Progress(going_on=True, ended="", steps=3, size_bytes=10)) == "step 3, 0 steps/s, 10 B"
    slow = Progress(going_on=True, ended="", steps=1, size_bytes=1, expected_steps=9000, steps_per_second=1.0)
    assert str(slow).endswith("2 h 30 min left")
    assert readable_bytes(3e15) == "3000 TB"
