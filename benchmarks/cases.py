"""The models, data and clocks that the benchmarks share."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.zoo import Classifier, ImageDataset, cifar_net, logistic_regression, mlp, mnist_net

Shape = tuple[int, int, int]
MNIST: Shape = (1, 28, 28)
CIFAR: Shape = (3, 32, 32)

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
    "adam": partial(torch.optim.Adam, lr=1e-3),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how long it is trained.

    Attributes:
        name: What tables call it.
        network: Makes it from an image shape and 10 classes.
        shape: Of an image.
        steps: Optimizer steps of a fit.
        quick_steps: The same, when only the benchmark itself is tested.
        optimizer: One of `OPTIMIZERS`.
        batch_size: Examples per step.
        epochs: How often each example is drawn.
    """

    name: str
    network: Callable[[Shape, int], nn.Module]
    shape: Shape
    steps: int
    quick_steps: int
    optimizer: str = "sgd"
    batch_size: int = 64
    epochs: int = 1

    def module(self) -> Classifier:
        """A fresh one, always of the same initial weights."""
        seed_everything(0, verbose=False)
        return Classifier(self.network(self.shape, 10), classes=10, optimizer=OPTIMIZERS[self.optimizer])

    def data(self, *, quick: bool = False) -> Images:
        """Epochs of just so many steps in all."""
        return Images(
            self.shape,
            examples=self.batch_size * (self.quick_steps if quick else self.steps) // self.epochs,
            batch_size=self.batch_size,
        )


CASES: Mapping[str, Case] = {
    c.name: c
    for c in (
        Case("LogReg", logistic_regression, MNIST, 600, 30),
        Case("MLP", partial(mlp, hidden=(128,)), MNIST, 400, 30),
        Case("MnistNet", mnist_net, MNIST, 300, 8),
        Case("CifarNet", cifar_net, CIFAR, 48, 2),
        Case("MnistNet, Adam", mnist_net, MNIST, 100, 8, "adam"),
    )
}


class Images(LightningDataModule):
    """Noisy images of ten class centres, kept in memory, and 256 more to ask about."""

    def __init__(self, shape: Shape, *, examples: int, batch_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        centres = torch.rand(10, *shape, generator=generator)
        labels = torch.randint(10, (examples + 256,), generator=generator)
        images = 0.5 * (centres[labels] + torch.rand(examples + 256, *shape, generator=generator))
        self.batch_size = batch_size
        self.train_set = ImageDataset(images[:examples], labels[:examples])
        self.val_set = ImageDataset(images[examples:], labels[examples:])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled the same way every time."""
        order = torch.Generator().manual_seed(0)
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """In order; batches as in training, so that the query takes no more memory than a step."""
        return DataLoader(self.val_set, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long something took.

    Attributes:
        wall: By the clock on the wall.
        cpu: Processor time of this process, which other work on the machine hardly changes.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


class FitClock(Callback):
    """Time between the first batch and the end of training: what a fit costs beyond its set-up."""

    def __init__(self) -> None:
        self.seconds = Seconds(0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._began = Seconds.now()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seconds = Seconds.now() - self._began


def fit(case: Case, data: Images, *, log: Path | None = None) -> Seconds:
    """Train by Lightning; the time its training loop took, data loading included."""
    module, clock = case.module(), FitClock()
    recorders = [] if log is None else [TrajectoryRecorder(log, overwrite=True)]
    trainer = Trainer(
        max_epochs=case.epochs,
        accelerator="cpu",
        callbacks=[clock, *recorders],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    return clock.seconds


def bare_loop(case: Case, data: Images) -> Seconds:
    """The same training written as a plain torch loop: the least it can cost."""
    module = case.module()
    optimizer = module.configure_optimizers()
    began = Seconds.now()
    for images, labels in data.train_dataloader():
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Seconds.now() - began


def timed(action: Callable[[], object]) -> Seconds:
    """How long it takes."""
    began = Seconds.now()
    action()
    return Seconds.now() - began


def interleaved(actions: Mapping[str, Callable[[], Seconds]], rounds: int) -> dict[str, list[Seconds]]:
    """Do each action once per round, so that whatever slows the machine down slows all of them down."""
    found: dict[str, list[Seconds]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            found[name].append(action())
    return found


def ratio(over: Sequence[Seconds], under: Sequence[Seconds]) -> tuple[float, float]:
    """Median over rounds of the ratio within a round: processor time, wall time."""
    pairs = list(zip(over, under, strict=True))
    return statistics.median(a.cpu / b.cpu for a, b in pairs), statistics.median(a.wall / b.wall for a, b in pairs)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def quiet() -> None:
    """One thread, and no advice from Lightning."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
