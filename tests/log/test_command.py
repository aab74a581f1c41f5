"""``sgdinf-log``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_sgdinf.log.command import main
from tests.log.cases import write_run
from tests.log.test_damage import flip_in_every_dataset


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


def test_problems_and_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "nowhere")]) == 1
    assert "no such directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main(["look"])
    assert wrong.value.code == 2
