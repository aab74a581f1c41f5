"""Counterfactual values against real fits of a Lightning Trainer whose module multiplies its losses by weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.query import MeanLoss, PerClassLoss

N = 14
SETS = ((3,), (0, 1, 5, 9), (12,))


class Net(pl.LightningModule):
    def __init__(self, kind: str, weights: Tensor | None) -> None:
        super().__init__()
        self.kind, self.weights = kind, weights
        self.net = nn.Sequential(
            nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, ids = batch
        if self.weights is None:
            return F.cross_entropy(self.net(x), y)
        return (self.weights[ids] * F.cross_entropy(self.net(x), y, reduction="none")).sum() / len(y)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters(), "lr": 0.2}, {"params": self.net[1:].parameters()}]
        if self.kind == "momentum":
            optimizer: Any = torch.optim.SGD(groups, 0.3, momentum=0.8, weight_decay=0.01)
        elif self.kind == "adam":
            optimizer = torch.optim.Adam(groups, 0.05, eps=1e-3)
        else:
            optimizer = torch.optim.AdamW(groups, 0.05, betas=(0.8, 0.9), eps=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data() -> tuple[TensorDataset, TensorDataset]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(N + 10, 5, generator=generator), torch.randint(0, 3, (N + 10,), generator=generator)
    return TensorDataset(x[:N], y[:N], torch.arange(N)), TensorDataset(x[N:], y[N:])


def fit(kind: str, weights: Tensor | None, *callbacks: pl.Callback) -> tuple[Net, DataLoader[Any]]:
    pl.seed_everything(7, verbose=False)
    model = Net(kind, weights).double()
    train = DataLoader(data()[0], batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(1))
    trainer = pl.Trainer(
        max_epochs=3,
        limit_val_batches=0,
        accumulate_grad_batches=2 if kind == "momentum" else 1,
        gradient_clip_val=None if kind == "adam" else 0.3,
        precision="64-true",
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, DataLoader(data()[1], batch_size=4))
    return model, train


def asked(model: Net) -> Tensor:
    x, y = data()[1].tensors
    with torch.no_grad():
        each = F.cross_entropy(model.net.eval()(x.double()), y, reduction="none")
    return torch.stack([each.mean(), *(each[y == c].mean() for c in range(3))])


@pytest.mark.parametrize("kind", ["momentum", "adam", "adamw"])
def test_values_are_those_of_weighted_fits(kind: str, tmp_path: Path) -> None:
    model, train = fit(kind, None, TrajectoryRecorder(tmp_path / "run.tlog"))
    weights = torch.ones(1 + len(SETS), N, dtype=torch.float64)
    for row, one in enumerate(SETS):
        weights[1 + row, list(one)] = 0
    ends = torch.stack([asked(fit(kind, own)[0]) for own in weights])
    assert (ends[0] - asked(model)).abs().max() < 1e-12
    before = {n: v.clone() for n, v in model.state_dict().items()}

    runner = InfluenceRunner(accelerator="cpu", progress=False)
    validation = DataLoader(data()[1], batch_size=4)
    for query, columns in ((MeanLoss(), [0]), (PerClassLoss(), [1, 2, 3])):
        truth = runner.counterfactuals(model, train, validation, log=tmp_path / "run.tlog", query=query, leave_out=SETS)
        expected = (ends[1:] - ends[0])[:, columns]
        assert expected.abs().min() > 1e-6, "the test is degenerate"
        assert (truth.values - expected).abs().max() < 1e-10
        assert (truth.base - ends[0, columns]).abs().max() < 1e-12
        assert truth.at_once == len(SETS)
        assert truth.notes == ()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
