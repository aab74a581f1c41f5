"""Trainings on two processes, to be looked at by the tests: ``python ddp_runs.py FOLDER``, once per process.

The processes are started from outside, as a cluster would, and do all trainings one after another. What each module saw
is noted by itself, apart from the recorder.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.query import MeanLoss, PerClassLoss

N, FEATURES, CLASSES = 19, 5, 3  # not divisible by two processes
RATE, MOMENTUM = 0.2, 0.8
DIES_IN_STEP = 3


def tensors(count: int = N, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (count,), generator=generator), torch.arange(count)


class Augmented(Dataset):
    """Noise from the global generators of the process."""

    def __init__(self) -> None:
        self.x, self.y, self.ids = tensors()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(FEATURES).double() + 0.1 * float(np.random.rand()), self.y[i], self.ids[i]


class Plain(pl.LightningModule):
    """Two layers; momentum SGD."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = self.layers().double()
        self.seen: list[list[int]] = []

    def layers(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(self.trainer, pl.Trainer):
            self.seen.append(batch[2].tolist())
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM)


class Rich(Plain):
    """BatchNorm and dropout; AdamW."""

    def layers(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(FEATURES, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, CLASSES)
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Dying(Plain):
    """Process 1 is gone in the middle of a step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == DIES_IN_STEP and self.global_rank == 1:
            os._exit(0)
        return super().training_step(batch, batch_idx)


def train_loader(dataset: Dataset | None = None) -> DataLoader:
    return DataLoader(dataset or TensorDataset(*tensors()), batch_size=4, shuffle=True)


def validation_loader() -> DataLoader:
    return DataLoader(TensorDataset(*tensors(8, seed=4)[:2]), batch_size=4)


def fit(net: Plain, loader: DataLoader, *callbacks: pl.Callback, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        precision="64-true",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(net, loader)
    return {n: v.clone() for n, v in net.state_dict().items()}


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcome: dict[str, Any] = {}
    rich = {"max_epochs": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 0.6}
    for name, make, data, options, keep in (
        ("plain", Plain, lambda: None, {}, "every_step"),
        ("rich", Rich, Augmented, rich, "every(4)"),
    ):
        alone = fit(make(), train_loader(data()), **options)
        net = make()
        recorded = fit(net, train_loader(data()), TrajectoryRecorder(folder / name, keep=keep), **options)
        outcome[name] = {
            "unchanged": all(torch.equal(alone[n], v) for n, v in recorded.items()),
            "seen": net.seen,
            "weights": recorded,
        }
    for name, query in (("rows", MeanLoss()), ("queries", PerClassLoss())):
        runner = InfluenceRunner(accelerator="cpu", devices=2, strategy="ddp", certificate="off", progress=False)
        scores = runner.run(Plain(), train_loader(), validation_loader(), log=folder / "plain", query=query)
        outcome[name] = {"scores": scores.values, "notes": scores.certificate.notes if scores.certificate else ()}
    torch.save(outcome, folder / f"rank-{rank}.pt")
    try:
        fit(Dying(), train_loader(), TrajectoryRecorder(folder / "dying"))
    except RuntimeError as error:  # what a collective operation says when a process is gone
        (folder / "error.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
