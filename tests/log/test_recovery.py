"""Logs of dead writers are made whole, and logs are continued."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_sgdinf.errors import LogCorruptError, LogLockedError, LogNotFoundError, ResumeError
from lightning_sgdinf.log import LogWriter, RunLog, Step
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.state import Layout
from tests.log.cases import assert_same_state, described, make_header, make_state, make_step, overwrite, put, write_run
from tests.log.test_batches import batches_of, data_of, with_batches

STEPS = 40
CODECS = ["none", "delta", "delta2"]


def assert_right(log: RunLog, steps: int, step: Callable[[int], Step] = make_step) -> None:
    """All of a log of so many recorded steps."""
    assert len(log) == steps - (not log.finished)
    for recorded in log.steps(0, len(log)):
        assert described(recorded) == described(step(recorded.index))
    assert log.state_indices.tolist() == [*range(len(log) + 1)]
    for index in log.state_indices[::-1].tolist():
        assert_same_state(log.state(index), make_state(index))
    assert log.verify().ok


def broken_off(path: Path, steps: int = STEPS, **options: object) -> None:
    """What is left of a run whose process dies after so many flushed steps."""
    writer = write_run(path.with_name("alive"), steps, finish=False, segment_bytes=1, **options)
    shutil.copytree(path.with_name("alive"), path)
    writer.abandon("the test has what it wants")
    shutil.rmtree(path.with_name("alive"))


def carry_on(path: Path, start: int, stop: int, **options: object) -> None:
    """The run goes on and comes to its end."""
    writer = LogWriter(path, header=make_header(), continue_at=start, segment_bytes=1, **options)  # type: ignore[arg-type]
    for t in range(start, stop):
        put(writer, make_state(t), make_step(t))
    layout = Layout.of(make_state(stop))
    flat = writer.take_buffers(layout)
    layout.pack(make_state(stop), flat)
    writer.finish(layout, flat)


@pytest.mark.parametrize("codec", CODECS)
def test_recovery_seals_what_is_left(tmp_path: Path, codec: str) -> None:
    broken_off(tmp_path / "run", codec=codec)
    report = recover(tmp_path / "run")
    assert (report.steps, report.sealed, report.set_aside) == (STEPS, STEPS % 16, ())
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "LOCK", "end.h5", "seg-0000000000.h5", "seg-0000000016.h5", "seg-0000000032.h5",
    ]  # fmt: skip
    with RunLog.open(tmp_path / "run") as log:
        assert_right(log, STEPS)
        assert log.end_reason == f"killed after step {STEPS - 1}; recovered"
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.h5")}
    assert not recover(tmp_path / "run").changed
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.h5")} == before


def test_a_recovered_log_has_the_digest_it_had(tmp_path: Path) -> None:
    broken_off(tmp_path / "run")
    with RunLog.open(tmp_path / "run") as log:
        assert "sgdinf-log recover" in log.end_reason
        before = log.digest
    recover(tmp_path / "run")
    with RunLog.open(tmp_path / "run") as log:
        assert log.digest == before


def test_stored_batches_are_recovered(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 20, step=with_batches)
    recover(tmp_path / "run")
    with RunLog.open(tmp_path / "run") as log:
        assert batches_of(log.step(18)) == [data_of(18, place) for place in range(3)]
        assert log.verify().ok


def test_a_finished_log_needs_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 5)
    assert not recover(tmp_path / "run").changed
    with RunLog.open(tmp_path / "run") as log:
        assert_right(log, 5)
        assert log.finished


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", 5, finish=False)
    with pytest.raises(LogLockedError):
        recover(tmp_path / "run")
    with pytest.raises(LogLockedError):
        LogWriter(tmp_path / "run", header=make_header(), continue_at=3)
    writer.abandon("done")
    with RunLog.open(tmp_path / "run") as log:
        assert_right(log, 5)


def test_what_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "run"
    broken_off(path)
    live = next(path.glob("live-*"))
    overwrite(live, b"\xff" * 5000)
    report = recover(path)
    assert (report.steps, report.sealed) == (32, 0)
    assert [p.name for p in report.set_aside] == [f"damaged-1-{live.name}"]
    assert report.set_aside[0].read_bytes() == b"\xff" * 5000
    with RunLog.open(path) as log:
        assert_right(log, 32)
    (path / "end.h5").write_bytes(b"nonsense")
    with pytest.raises(LogCorruptError):
        RunLog.open(path)
    assert [p.name for p in recover(path).set_aside] == ["damaged-1-end.h5"]
    with RunLog.open(path) as log:
        assert_right(log, 32)
    write_run(path, 2, overwrite=True)
    assert not list(path.glob("damaged-*"))


def test_a_recovery_that_was_killed_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    broken_off(path)
    live = next(path.glob("live-*"))
    (path / "tmp-copy").write_bytes(b"half")
    (path / "tmp-1-0000000032.h5").write_bytes(b"half")
    content = live.read_bytes()
    recover(path)
    (path / "end.h5").unlink()
    live.write_bytes(content)  # as if it had died before this was removed
    with RunLog.open(path) as log:
        assert_right(log, STEPS)
    recover(path)
    with RunLog.open(path) as log:
        assert_right(log, STEPS)
    assert not list(path.glob("live-*")) + list(path.glob("tmp-*"))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("at", [0, 5, 16, 33, STEPS])
def test_a_continued_log_is_the_log_of_the_whole_run(tmp_path: Path, codec: str, finished: bool, at: int) -> None:
    """The same digest, which covers every step and state, and the same content."""
    path, whole = tmp_path / "run", tmp_path / "whole"
    if finished:
        write_run(path, STEPS, codec=codec, segment_bytes=1)
    else:
        broken_off(path, codec=codec)
    carry_on(path, at, 45, codec=codec)
    write_run(whole, 45, codec=codec)
    with RunLog.open(path) as log, RunLog.open(whole) as other:
        assert log.finished
        assert log.digest == other.digest
        assert_right(log, 45)


def test_continuing_with_another_codec(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 20, codec="none", segment_bytes=1)
    carry_on(tmp_path / "run", 18, 40, codec="delta2")
    with RunLog.open(tmp_path / "run") as log:
        assert_right(log, 40)
        assert {segment.codec.name for segment in log.segments()} == {"none", "delta2"}


def test_what_cannot_be_continued(tmp_path: Path) -> None:
    broken_off(tmp_path / "run")
    with pytest.raises(ResumeError, match=r"has 40 steps.*step 42: steps 40 to 41 are lost"):
        LogWriter(tmp_path / "run", header=make_header(), continue_at=42)
    with pytest.raises(ResumeError, match=r"run 5eed5eed5eed5eed, expected run 00"):
        LogWriter(tmp_path / "run", header=make_header(run_id="00"), continue_at=4)
    with pytest.raises(LogNotFoundError):
        LogWriter(tmp_path / "elsewhere", header=make_header(), continue_at=4)
    assert not (tmp_path / "elsewhere").exists()
    with RunLog.open(tmp_path / "run") as log:
        assert_right(log, STEPS)


def test_a_finished_log_stays_finished_until_it_really_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, 20)
    writer = LogWriter(path, header=make_header(), continue_at=20)
    writer.abandon("no step was taken")
    with RunLog.open(path) as log:
        assert log.finished
        assert_right(log, 20)
    writer = LogWriter(path, header=make_header(), continue_at=20, flush_every=1000)
    put(writer, make_state(20), make_step(20))
    with RunLog.open(path) as log:
        assert log.finished
    writer.flush()
    shutil.copytree(path, tmp_path / "killed")
    put(writer, make_state(21), make_step(21))
    writer.abandon("two more")
    with RunLog.open(path) as log:
        assert_right(log, 22)
    with RunLog.open(tmp_path / "killed") as log:
        assert_right(log, 21)


def test_killed_between_the_first_flush_and_the_end_of_the_old_end(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, 20)
    end = (path / "end.h5").read_bytes()
    writer = LogWriter(path, header=make_header(), continue_at=20)
    put(writer, make_state(20), make_step(20))
    writer.flush()
    shutil.copytree(path, tmp_path / "killed")
    writer.abandon("")
    (tmp_path / "killed" / "end.h5").write_bytes(end)
    with RunLog.open(tmp_path / "killed") as log:
        assert log.finished
        assert_right(log, 20)
    assert recover(tmp_path / "killed").sealed == 1
    with RunLog.open(tmp_path / "killed") as log:
        assert_right(log, 21)


def test_recovered_states_in_any_order(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", codec="delta2")
    recover(tmp_path / "run")
    with RunLog.open(tmp_path / "run") as log:
        for index in np.random.default_rng(0).permutation(STEPS).tolist():
            assert_same_state(log.state(index), make_state(index))
