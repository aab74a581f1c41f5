"""Counterfactual truth, all runs at once, against one training after another.

    python benchmarks/truth.py [--case DNN ...] [--rounds 3] [--quick]

The truth of a recorded run is what a query becomes when the run is done again without each of its 200 training
examples. Timed are `InfluenceRunner.counterfactuals` with all that belongs to it (reading the log, verifying the run,
making batches, asking the query); a plain torch loop, tensors in memory, no data loader, that drops the example's row
from its batches; and Lightning fits. Of the loop 20 runs are timed and of Lightning 2, and multiplied: they all take
the same time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import torch
import torch.nn.functional as F
from cases import FitClock, Seconds
from lightning import LightningModule
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.truth import Truth
from lightning_sgdinf.zoo import Classifier, PenalisedClassifier, mlp

N, SAMPLE, FITS = 200, 20, 2


@dataclass(frozen=True, slots=True)
class Setting:
    """A training.

    Attributes:
        model: Makes the module, always with the same weights.
        shape: Of an example.
        batch_size: Examples per step.
        epochs: How often all are gone through.
        binary: One logit and a penalty in the loss, or cross entropy of ten classes.
    """

    model: Callable[[], Any]
    shape: tuple[int, ...]
    batch_size: int
    epochs: int
    binary: bool = True

    @property
    def steps(self) -> int:
        """Of one run."""
        return self.epochs * N // self.batch_size

    def data(self) -> tuple[TensorDataset, TensorDataset]:
        """Training and validation set: noisy class centres."""
        generator = torch.Generator().manual_seed(0)
        kinds = 2 if self.binary else 10
        centres = torch.randn(kinds, *self.shape, generator=generator)
        y = torch.randint(kinds, (2 * N,), generator=generator)
        x = centres[y] + 2 * torch.randn(2 * N, *self.shape, generator=generator)
        return TensorDataset(x[:N], y[:N]), TensorDataset(x[N:], y[N:])

    def losses(self, module: Any, x: Tensor, y: Tensor) -> Tensor:
        """Of each example, penalty included."""
        if self.binary:
            return module.per_example_loss((x, y), 0)
        return F.cross_entropy(module(x), y, reduction="none")


def _dnn() -> LightningModule:
    return PenalisedClassifier(mlp((784, 1, 1), 1, hidden=(8, 8)), penalty=1e-3, lr=0.1)


def _logreg() -> LightningModule:
    return PenalisedClassifier(nn.Linear(784, 1), penalty=1e-3, lr=0.1, decay=True)


def _cnn() -> LightningModule:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return Classifier(network, classes=10, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))


SETTINGS = {
    "DNN 784-8-8-1": Setting(_dnn, (784,), 20, 10),
    "LogReg 784-1": Setting(_logreg, (784,), 5, 5),
    "CNN, 8 x 8 images, momentum": Setting(_cnn, (1, 8, 8), 20, 10, binary=False),
}


def fit(setting: Setting, *callbacks: Any) -> tuple[LightningModule, DataLoader, Seconds]:
    """Train by Lightning."""
    seed_everything(0, verbose=False)
    module, clock = setting.model(), FitClock()
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(setting.data()[0], batch_size=setting.batch_size, shuffle=True, generator=order)
    trainer = Trainer(
        max_epochs=setting.epochs,
        accelerator="cpu",
        callbacks=[clock, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, loader, DataLoader(setting.data()[1], batch_size=N))
    return module, loader, clock.seconds


class Loop:
    """The recorded run as a plain torch loop.

    Args:
        setting: What is trained.
        log: Its record.
    """

    def __init__(self, setting: Setting, log: Path) -> None:
        self.setting = setting
        self.module = setting.model()
        self.x, self.y = setting.data()[0].tensors
        self.val_x, self.val_y = setting.data()[1].tensors
        with RunLog.open(log) as record:
            self.start = record.state(0).params
            self.batches = [torch.tensor(s.example_ids) for s in record.steps(0, len(record))]
            self.rates = [s.learning_rates[0] for s in record.steps(0, len(record))]

    def value(self, without: int | None) -> float:
        """The mean validation loss after training without an example."""
        module = self.module
        module.load_state_dict(self.start, strict=False)
        options: Any = module.configure_optimizers()
        optimizer = options["optimizer"] if isinstance(options, dict) else options
        for ids, rate in zip(self.batches, self.rates, strict=True):
            kept = ids[ids != without] if without is not None else ids
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (self.setting.losses(module, self.x[kept], self.y[kept]).sum() / len(ids)).backward()
            optimizer.step()
        with torch.no_grad():
            return float(module.validation_step((self.val_x, self.val_y), 0))


def row(name: str, setting: Setting, directory: Path, *, rounds: int, sample: int) -> tuple[str, ...]:
    """One line of the table."""
    log = directory / f"{len(name)}.tlog"
    module, loader, _ = fit(setting, TrajectoryRecorder(log, overwrite=True))
    loop = Loop(setting, log)
    held_out = DataLoader(setting.data()[1], batch_size=N)
    results: dict[str, Any] = {}

    def together() -> Seconds:
        runner = InfluenceRunner(accelerator="cpu", progress=False)

        def run() -> None:
            results["truth"] = runner.counterfactuals(module, loader, held_out, log=log)

        return cases.timed(run)

    def one_by_one() -> Seconds:
        def run() -> None:
            base = loop.value(None)
            results["loop"] = [loop.value(j) - base for j in range(sample)]

        spent = cases.timed(run)
        return Seconds(spent.wall * N / (sample + 1), spent.cpu * N / (sample + 1))

    def lightning() -> Seconds:
        spent = list(_fits(setting))
        return Seconds(sum(s.wall for s in spent) * N / FITS, sum(s.cpu for s in spent) * N / FITS)

    found = cases.interleaved({"together": together, "loop": one_by_one, "fits": lightning}, rounds)
    truth: Truth = results["truth"]
    gap = (truth.values[:sample, 0] - torch.tensor(results["loop"])).abs().max() / truth.values.abs().max()
    best = min(s.wall for s in found["together"])
    cells = [cases.ratio(found[other], found["together"]) for other in ("loop", "fits")]
    return (
        name,
        f"{N} of {setting.steps} steps",
        f"{best:.2f} s",
        *(f"{cpu:.0f} ({wall:.0f})" for cpu, wall in cells),
        f"{float(gap):.0e}",
    )


def _fits(setting: Setting) -> Iterator[Seconds]:
    for _ in range(FITS):
        yield fit(setting)[2]


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    cases.quiet()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in list(SETTINGS)[:1] if chosen.quick else chosen.case:
            rounds, sample = (1, 2) if chosen.quick else (chosen.rounds, SAMPLE)
            rows.append(row(name, SETTINGS[name], Path(directory), rounds=rounds, sample=sample))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    head = ("model", "runs", "all at once", "torch loop / all at once", "Lightning / all at once", "values agree to")
    found = cases.table(head, rows)
    print(found)
    return found


if __name__ == "__main__":
    main()
