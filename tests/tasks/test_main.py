"""The command itself, on very little data."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_sgdinf import RunLog, Scores
from lightning_sgdinf.studies.pipeline import stages
from lightning_sgdinf.tasks.main import main

TINY = [
    *("dataset.train_size=48", "dataset.val_size=60", "dataset.test_size=60", "dataset.batch_size=16", "model=logreg"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "cleansing.grid=[2,5]", "report.shown=4"),
]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sgdinf", *arguments])
    main()


def test_a_job_leaves_record_scores_report_and_row(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detect, detected = stages.detect_wrong_labels, []
    monkeypatch.setattr(stages, "detect_wrong_labels", lambda *arguments: detected.append(1) or detect(*arguments))
    run(monkeypatch, *TINY, "report.curve_counts=[3]", "hydra.run.dir=out")
    assert len(detected) == 3  # once for each ranking, whoever asks
    out = in_folder / "out"
    with RunLog.open(out / "run.tlog") as log:
        assert len(log) == 6
        assert log.finished
    scores = {name: Scores.load(out / "scores" / f"{name}.h5") for name in ("sgd_influence", "random", "loss")}
    assert {len(s) for s in scores.values()} == {48}
    assert scores["sgd_influence"].queries == ("mean validation loss",)
    assert scores["sgd_influence"].certificate is not None
    assert scores["sgd_influence"].certificate.gradient_check is not None
    assert not torch.equal(scores["random"].order(), scores["sgd_influence"].order())
    begun = re.findall(r"stage (\d) of (\d): (.*)", (out / "sgdinf.log").read_text())
    ranked = ["ranking by sgd_influence", "ranking by loss", "ranking by random"]
    cleansed = "choosing what to leave out, and training again"
    assert [name for *_, name in begun] == ["training, recorded", *ranked, cleansed, "writing the report"]
    assert [(first, of) for first, of, _ in begun] == [(str(k), "6") for k in range(1, 7)]
    row = json.loads((out / "summary.json").read_text())
    assert row["dataset"] == "digits"
    assert row["model"] == "logreg"
    assert row["override trainer.max_epochs"] == "2"
    assert 0 <= row["test_error_after"] <= 1
    assert 0 <= row["auroc"] <= 1
    page = (out / "report" / "report.html").read_text()
    for part in ("sgd_influence", "read as", "test error", "sgdinf dataset.train_size=48"):
        assert part in page
    printed = capsys.readouterr().out
    assert "Most harmful training examples" in printed
    assert "report.html" in printed


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.lr=fast", "optimizer.lr: expected float"),
        ("dataset.label_noise=2.0", "dataset: fraction of labels to flip"),
    ],
)
def test_mistakes_end_with_one_line(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *TINY, override, "hydra.run.dir=out")
    assert caught.value.code == 1
    assert f"ConfigurationError: {says}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("retrain", "recorder", "cleansing"), [("last_epochs", "last_epoch", "relabel"), ("scratch", "every_10", "top_k")]
)
@pytest.mark.filterwarnings("ignore:without 20 examples")
def test_other_ways_to_cleanse_and_to_train_again(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, retrain: str, recorder: str, cleansing: str
) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("cleansing.")]
    options = [
        f"retrain={retrain}",
        f"cleansing={cleansing}",
        "cleansing.k=20",
        "on_excess=warn",
        "estimator=last_epochs",
        "query=margin",
    ]
    options += [f"recorder={recorder}", "report=short"]
    run(monkeypatch, *tiny, *options, "runner.certificate=off", "hydra.run.dir=out")
    row = json.loads((in_folder / "out" / "summary.json").read_text())
    assert 0 < row["changed"] <= 20
    assert (row["changed"] == 20) == (cleansing == "top_k")
    assert row["test_loss_after"] != row["test_loss_before"]


def test_a_sweep_ends_with_one_table(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", "estimator=last_epochs,random", "seed=4", "hydra.sweep.dir=swept", "~estimator@compare.random"]
    run(monkeypatch, *sweep, *TINY, "report=short")
    with (in_folder / "swept" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["estimator"], row["seed"]) for row in rows] == [
        ("0", "last_epochs", "4"),
        ("1", "random", "4"),
    ]
    assert rows[0]["test_error_before"] == rows[1]["test_error_before"]
    assert rows[0]["auroc"] != rows[1]["auroc"]
    assert f"Merged: {Path('swept', 'merged', 'page.html')}" in capsys.readouterr().out
    assert Path("swept", "merged", "page.html").is_file()


def test_processes_in_a_sweep_are_refused(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "-m", *TINY, "trainer.devices=2", "hydra.sweep.dir=swept")
    assert "would start the sweep again" in capsys.readouterr().err


def test_the_command_is_installed(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("sgdinf")), "--cfg", "job", "seed=7"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "seed: 7" in result.stdout
