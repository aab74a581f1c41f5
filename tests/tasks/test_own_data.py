"""The command with a data module and a LightningModule of the caller's, in a folder of their own."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_wine
from torch import nn

from lightning_sgdinf import RunLog, Scores
from lightning_sgdinf.cleansing import halve
from lightning_sgdinf.tasks import main as command
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


def by_hand(cellar: Path, out: Path, harmful: Sequence[int]) -> tuple[float, float]:
    """Loss on the choosing half after the recorded batches, with all examples and without some: a loop of its own."""
    rows = list(csv.reader((cellar / "wines.csv").read_text().splitlines(), delimiter=";"))[1:]
    table = torch.tensor([[float(cell) for cell in row] for row in rows])
    x, y = (table[:, :-1] - table[:, :-1].mean(0)) / table[:, :-1].std(0), table[:, -1:]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    training, validation = order[:24], order[24:]
    choosing = validation[halve(16, seed=0).choosing]  # of which examples, not of how they are used
    values = []
    for left_out in ((), harmful):
        with RunLog.open(out / "run.tlog") as log:
            steps, start = list(log.steps(0, len(log))), log.state(0).params
        weight, bias = (start[f"net.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
        adam = torch.optim.Adam([weight, bias], 0.05)
        for step in steps:
            ids = step.example_ids.tolist()
            own = training[ids]
            gaps = (x[own] @ weight.T + bias - y[own]).square()[:, 0]
            kept = torch.tensor([float(j not in left_out) for j in ids])
            adam.zero_grad()
            ((gaps * kept).sum() / len(ids)).backward()
            adam.step()
        values.append(float((x[choosing] @ weight.T + bias - y[choosing]).square().mean().detach()))
    return values[0], values[1]


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
    before, after = by_hand(cellar, out, scores.order()[: row["changed"]].tolist())
    assert (row["before"], row["after"]) == pytest.approx((before, after), rel=1e-5)
    assert (after < before) == (row["changed"] == 2)
    page = (out / "report" / "report.html").read_text()
    assert "no comparison with knn" in page  # a classifier's baseline
    assert "no test_dataloader" in page
    assert "8 validation examples" in page
    if row["changed"]:
        assert re.search(r"lowered validation mean loss from \S+ to \S+ on 8 validation examples", page)
    printed = " ".join(capsys.readouterr().out.split())
    assert "looks better than it is" in printed
    assert "mean loss, choosing half of the validation data (8 validation examples):" in printed


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
    sweep = ["seed=0,1", "hydra.sweep.dir=sweep", "cleansing=top_k", "cleansing.k=2", *QUICK, "~estimator@compare.loss"]
    run(monkeypatch, "-m", *command.split()[1:], *sweep)
    rows = list(csv.DictReader((in_folder / "cellar_two" / "sweep" / "summary.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert {row["measured"] for row in rows} == {"mean loss, test data"}
    assert rows[0]["before"] != rows[1]["before"]
    for job in "01":
        page = Path("sweep", job, "report", "report.html").read_text()
        assert "test mean loss on 48 test examples, before" in page
        assert "Curves of test mean loss against the number of examples left out" in page
        assert page.count("One run; the interval is that of the test.") == 1
    losses = wines_by_hand(Path("sweep", "1"))
    assert [float(rows[1][key]) for key in ("before", "after")] == pytest.approx([x.mean() for x in losses], rel=1e-5)
    p_value = f"paired t test over 48 test examples: p = {stats.ttest_rel(*losses).pvalue:.3f}"
    assert p_value in page.replace("&nbsp;", " ")


def wines_by_hand(job: Path) -> list[np.ndarray]:
    """Loss of each test wine after the recorded batches, with all examples and without two: a loop of its own."""
    measured, cultivar = load_wine(return_X_y=True)
    x, y = torch.tensor(measured, dtype=torch.float32), torch.tensor(cultivar)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(178, generator=torch.Generator().manual_seed(1))
    train, test = order[:90], order[130:]
    harmful = Scores.load(job / "scores" / "sgd_influence.h5").order()[:2]
    losses = []
    for left_out in ([], harmful.tolist()):
        with RunLog.open(job / "run.tlog") as log:
            steps, start = list(log.steps(0, len(log))), log.state(0).params
        weights = [
            start[f"net.{layer}.{name}"].clone().requires_grad_() for layer in (0, 2) for name in ("weight", "bias")
        ]
        loss = lambda ids, w=weights: nn.functional.cross_entropy(  # noqa: E731
            (x[ids] @ w[0].T + w[1]).tanh() @ w[2].T + w[3], y[ids], reduction="none"
        )
        sgd = torch.optim.SGD(weights, 0.05, momentum=0.9)
        for step in steps:
            ids = step.example_ids.tolist()
            sgd.zero_grad()
            ((loss(train[ids]) * torch.tensor([float(j not in left_out) for j in ids])).sum() / len(ids)).backward()
            sgd.step()
        losses.append(loss(test).detach().double().numpy())
    return losses


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
        (
            [*OWN, "model.lr=-1"],
            r"Error: model.lr=-1: Quality.configure_optimizers: Invalid learning rate",
        ),
        ([*OWN, "+dataset.batch_size=0"], "dataset.batch_size=0: Wines.train_dataloader: batch_size should be a posi"),
        (["dataset.batch_size=0"], "dataset.batch_size=0: ImageData.train_dataloader: batch_size should be a positive"),
        ([*OWN, "cleansing.grid=[]"], "cleansing: grid: expected at least one count to try, got none; leave grid out"),
        ([*OWN, "trainer.max_epochs=0"], "trainer.max_epochs=0: no step is taken, .*; set it to 1 or more"),
        (["+trainer.max_steps=0"], "trainer.max_steps=0: no step is taken, .* or to -1 to stop by trainer.max_epochs"),
        (["+trainer.limit_train_batches=0.0"], "trainer.limit_train_batches=0.0: no step .*a part of them in .0, 1."),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run=True: nothing is recorded then"),
        (["experiment=unlearning", "trainer.max_epochs=0"], "trainer.max_epochs=0: no step is taken"),
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
        run(monkeypatch, *arguments, *QUICK[1:])  # no case gets as far as a first epoch
    assert ended.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (cellar / "out" / "run.tlog").exists()


def test_the_recorded_run_is_that_of_lightning_alone(cellar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its optimizer, which draws a random number, was made once before."""
    rate = "self.lr * (0.5 + float(torch.rand(())))"
    (cellar / "cellar.py").write_text(
        QUALITY.replace("Adam(self.parameters(), self.lr)", f"Adam(self.parameters(), {rate})")
    )
    few = ["report=short", "cleansing=top_k", "cleansing.k=1", "runner.certificate=off", "report.curve_counts=[]"]
    run(monkeypatch, *OWN, *QUICK[:-1], *few, "~estimator@compare.loss", "~estimator@compare.random")
    with RunLog.open(cellar / "out" / "run.tlog") as log:
        recorded = log.state(len(log)).params
    L.seed_everything(0, verbose=False)
    model, data = sys.modules["cellar"].Quality(0.05), sys.modules["cellar"].Wines("wines.csv")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(model, datamodule=data)
    assert {name: value.tolist() for name, value in model.named_parameters()} == {
        name: value.tolist() for name, value in recorded.items()
    }


def test_training_anew_moves_batches_as_the_recorded_run_did(cellar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = QUALITY.replace(
        "    def val_dataloader(self):",
        "    def on_after_batch_transfer(self, batch, dataloader_idx):\n"
        "        seen.append((isinstance(self.trainer, L.Trainer) and self.trainer.training, len(batch[0])))\n"
        "        return batch\n\n"
        "    def val_dataloader(self):",
    )
    (cellar / "cellar.py").write_text(text.replace("class Wines", "seen = []\n\n\nclass Wines"))
    run(monkeypatch, *OWN, *QUICK, "cleansing=top_k", "cleansing.k=2", "retrain=scratch", "report.curve_counts=[]")
    moved = [count for training, count in sys.modules["cellar"].seen if training]
    assert sum(moved) == 2 * 24 + 2 * 24 + 2 * 22, "recorded, anew with all, anew without two; two epochs of each"


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_a_sweep_that_optimises_minimises(
    better: str, sign: int, cellar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cellar / "conf" / "query").mkdir()
    (cellar / "conf" / "query" / "own.yaml").write_text(f"_target_: cellar.own\nbetter: {better}\n")
    more = """

def own(better):
    from lightning_sgdinf.query import FunctionQuery

    return FunctionQuery(lambda model, data: model.net.weight.sum()[None], labels=("sum",), better=better)
"""
    (cellar / "cellar.py").write_text(QUALITY + more)
    returned = []
    attempt = command._attempt
    monkeypatch.setattr(command, "_attempt", lambda config: returned.append(attempt(config)) or returned[-1])
    run(monkeypatch, *OWN, *QUICK, "query=own", "report.curve_counts=[]", "cleansing=top_k", "cleansing.k=1")
    assert returned == [sign * json.loads((cellar / "out" / "summary.json").read_text())["after"]]
