"""The command with a data module and a LightningModule of the caller's, in a folder of their own."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from pathlib import Path

import pytest

from lightning_sgdinf import RunLog, Scores
from lightning_sgdinf.tasks.main import main

QUICK = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "threads=1", "hydra.run.dir=out", "report.curve_counts=[2]"]
QUALITY = '''
import csv
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Wines(L.LightningDataModule):
    """Rows of a table with a quality in the last column; validation from the training file."""

    def __init__(self, path: str, batch_size: int = 8):
        super().__init__()
        self.path, self.batch_size = path, batch_size

    def setup(self, stage):
        with open(self.path) as file:
            rows = list(csv.reader(file, delimiter=";"))[1:]
        table = torch.tensor([[float(cell) for cell in row] for row in rows])
        x, y = table[:, :-1], table[:, -1:]
        parts = random_split(TensorDataset((x - x.mean(0)) / x.std(0), y), [24, 16], torch.Generator().manual_seed(0))
        self.train, self.val = parts

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 16)


class Quality(L.LightningModule):
    """Predicts the quality; its loss is a mean of squares."""

    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.net, self.lr = nn.Linear(11, 1), lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


def nothing(**arguments):
    return object()
'''


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sgdinf", *arguments])
    main()


@pytest.fixture
def cellar(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module ``cellar.py``, its configuration, and a table."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "cellar", raising=False)
    (in_folder / "cellar.py").write_text(QUALITY)
    draw = random.Random(0)
    with (in_folder / "wines.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow([*(f"measured {i}" for i in range(11)), "quality"])
        for _ in range(40):
            measured = [draw.gauss(0, 1) for _ in range(11)]
            table.writerow([*measured, round(5 + measured[0] + 0.3 * draw.gauss(0, 1))])
    for group, name, text in (
        ("dataset", "wines", "_target_: cellar.Wines\npath: wines.csv\n"),
        ("model", "quality", "_target_: cellar.Quality\nlr: 0.05\n"),
    ):
        (in_folder / "conf" / group).mkdir(parents=True)
        (in_folder / "conf" / group / f"{name}.yaml").write_text(text)
    return in_folder


OWN = ["--config-dir", "conf", "dataset=wines", "model=quality"]


def test_a_regression_on_a_table_is_recorded_ranked_cleansed_and_shown(
    cellar: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *OWN, *QUICK, "cleansing.grid=[2]", "+estimator@compare.knn=confident_learning")
    out = cellar / "out"
    with RunLog.open(out / "run.tlog") as log:
        assert (log.finished, len(log), log.header.optimizer.rpartition(".")[2]) == (True, 6, "Adam")
    scores = Scores.load(out / "scores" / "sgd_influence.h5")
    assert len(scores) == 24
    assert scores.certificate is not None
    row = json.loads((out / "summary.json").read_text())
    assert row["measured"] == "mean loss, choosing half of the validation data"
    assert row["changed"] in (0, 2)
    assert (row["after"] < row["before"]) == (row["changed"] == 2)
    page = (out / "report" / "report.html").read_text()
    assert "no comparison with knn" in page  # a classifier's baseline
    assert "no test_dataloader" in page
    printed = " ".join(capsys.readouterr().out.split())
    assert "looks better than it is" in printed
    assert "mean loss, choosing half" in printed


def test_a_folder_of_ones_own_is_written_and_runs(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "init", "cellar_two")
    assert ended.value.code == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("sgdinf"))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "init", "cellar_two")
    assert ended.value.code == 1
    assert "is there already and was left as it is" in capsys.readouterr().err
    monkeypatch.chdir(in_folder / "cellar_two")
    sweep = ["seed=0,1", "hydra.sweep.dir=sweep", "cleansing.grid=[2]", *QUICK, "~estimator@compare.loss"]
    run(monkeypatch, "-m", *command.split()[1:], *sweep)
    rows = list(csv.DictReader((in_folder / "cellar_two" / "sweep" / "summary.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert {row["measured"] for row in rows} == {"mean loss, test data"}
    assert rows[0]["before"] != rows[1]["before"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir", "conf", "dataset=wines"], r"Wines is a data module of your own; give a LightningModule of"),
        ([*OWN, "optimizer=sgd"], "optimizer=sgd: this experiment does not read optimizer: the LightningModule has"),
        ([*OWN, "choose_by=error"], "choose_by=error: a LightningModule of your own is judged by the query"),
        ([*OWN, "model._target_=cellar.nothing"], "model._target_: expected a LightningModule, got object"),
        ([*OWN, "dataset._target_=cellar.nothing"], "dataset._target_: expected a LightningDataModule to train"),
        ([*OWN, "model.lr=fast"], "model.lr: expected float, got 'fast'"),
        ([*OWN, "model._target_=cellar.Qality"], "model: cannot import 'cellar.Qality'"),
        ([*OWN, "optimizer.lr=-1"], "optimizer.lr=-1: this experiment does not read optimizer"),
        (["optimizer.lr=-1"], "optimizer: .*Invalid learning rate: -1"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_trained(
    cellar: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments, *QUICK)
    assert ended.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (cellar / "out" / "run.tlog").exists()
