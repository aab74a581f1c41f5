"""``sgdinf-log``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import h5py
import pytest

from lightning_sgdinf.log.command import main
from tests.log.cases import write_run
from tests.log.test_damage import flip_in_every_dataset
from tests.log.test_recovery import broken_off


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", 25, keep=lambda t: t % 2 == 0)
    assert main(["info", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    for expected in (
        "steps       25 in 3 epochs",
        "14 stored (keep=every(2))",
        "SGD",
        "completed",
        "delta",
        "x smaller",
    ):
        assert expected in text


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", 5)
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "5 steps and 6 states agree" in capsys.readouterr().out
    part = tmp_path / "run" / "seg-0000000000.h5"
    flip_in_every_dataset(part)["state/float32"]()
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "seg-0000000000.h5: state 1 differs" in capsys.readouterr().out


def test_recover(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken_off(tmp_path / "run", 20)
    assert main(["info", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "`sgdinf-log recover" in text
    assert "its last step, which is not counted here" in text
    assert "steps       19 in" in text
    assert main(["recover", str(tmp_path / "run")]) == 0
    assert "20 steps; 4 of them were not sealed, and are now" in capsys.readouterr().out
    assert main(["recover", str(tmp_path / "run")]) == 0
    assert "nothing to recover" in capsys.readouterr().out
    next((tmp_path / "run").glob("end*")).write_bytes(b"")
    assert main(["recover", str(tmp_path / "run")]) == 0
    assert "damaged-1-end.h5 could not be read" in capsys.readouterr().out


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", 5)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain.h5")]) == 0
    assert "5 steps, 6 states" in capsys.readouterr().out
    with h5py.File(tmp_path / "plain.h5") as file:
        assert len(file["steps/epoch"]) == 5
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain.h5")]) == 1
    assert "plain.h5 exists" in capsys.readouterr().err


def test_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "run")
    assert main(["watch", path, "--once"]) == 1
    writer = write_run(tmp_path / "run", 5, finish=False, expected_steps=20)
    assert main(["watch", path, "--once"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("step 5 of 20 (25 %), ")
    assert " steps/s, " in line
    shutil.copytree(path, tmp_path / "killed")
    writer.abandon("enough")
    assert main(["watch", path]) == 0
    assert "5 steps" in (line := capsys.readouterr().out)
    assert "ended: enough" in line
    assert main(["watch", str(tmp_path / "killed")]) == 1
    assert "its writer is gone: `sgdinf-log recover`" in capsys.readouterr().out


def test_problems_and_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "nowhere")]) == 1
    assert "no such directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main(["look"])
    assert wrong.value.code == 2


def test_a_reader_that_has_read_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``sgdinf-log info run.tlog | head -1`` ends."""
    path = tmp_path / "run.tlog"
    write_run(path, 3)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["info", str(path)]) == 0
