"""Who may write where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_sgdinf.errors import LogExistsError, LogLockedError, LogWriteError
from lightning_sgdinf.log import LogWriter, RunLog
from lightning_sgdinf.log.recovery import recover
from tests.log.cases import make_header, write_run


def test_an_existing_log_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, 40, segment_bytes=1)
    before = {p.name: p.read_bytes() for p in path.glob("*.h5")}
    with pytest.raises(LogExistsError, match="overwrite=True"):
        LogWriter(path, header=make_header())
    assert {p.name: p.read_bytes() for p in path.glob("*.h5")} == before
    write_run(path, 2, overwrite=True)
    with RunLog.open(path) as log:
        assert len(log) == 2


def test_what_is_not_a_log_is_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, 2)
    (path / "thesis.tex").write_text("years of work")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(LogExistsError, match=r"thesis\.tex"):
        LogWriter(path, header=make_header(), overwrite=True)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    (tmp_path / "file").write_text("data")
    with pytest.raises(LogExistsError, match="is a file"):
        LogWriter(tmp_path / "file", header=make_header(), overwrite=True)
    assert (tmp_path / "file").read_text() == "data"


def test_two_writers(tmp_path: Path) -> None:
    first = write_run(tmp_path / "run", 3, finish=False)
    with pytest.raises(LogLockedError, match=f"{os.getpid()}@"):
        LogWriter(tmp_path / "run", header=make_header(), overwrite=True)
    first.abandon("make room")
    write_run(tmp_path / "run", 1, overwrite=True)


def test_leftovers_without_a_step_do_not_take_the_path(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "run", header=make_header())
    writer.abandon("failed before the first step")
    (tmp_path / "run" / "tmp-end-1.h5").write_bytes(b"half")
    write_run(tmp_path / "run", 2)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["LOCK", "end.h5", "seg-0000000000.h5"]


def test_impossible_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    with pytest.raises(LogWriteError, match="choose a local, writable disk"):
        LogWriter(tmp_path / "file" / "run", header=make_header())


def test_a_reserve_that_cannot_be_given_back_keeps_neither_steps_nor_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "made to fail")

    writer = write_run(tmp_path / "run", 20, finish=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(LogWriteError, match="made to fail"):
            writer.abandon("")
    assert recover(tmp_path / "run").steps == 20
