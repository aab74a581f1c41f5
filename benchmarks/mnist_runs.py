"""Training runs on MNIST that the benchmarks of the log record; noisy images of class centres stand in for it."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from cases import MNIST, OPTIMIZERS, Images, Shape
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.zoo import Classifier, ImageDataset, Mnist, mnist_net

BATCH = 64


def wide_cnn(image_shape: Shape, classes: int) -> nn.Sequential:
    """Two convolutions and two linear layers, 307,978 parameters for MNIST: many for the time that a step takes."""
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 192), nn.ReLU(), nn.Linear(192, classes),
    )  # fmt: skip


NETWORKS: Mapping[str, Callable[[Shape, int], nn.Module]] = {"MnistNet": mnist_net, "CNN": wide_cnn}


def add_data_option(parser: ArgumentParser) -> None:
    """``--data-dir``, by default the folder that ``SGDINF_DATA_DIR`` names."""
    named = os.environ.get("SGDINF_DATA_DIR")
    parser.add_argument("--data-dir", type=Path, default=Path(named) if named else None, help="folder with MNIST")


def training_data(data_dir: Path | None, steps: int) -> Dataset[tuple[torch.Tensor, torch.Tensor]]:
    """Examples for so many steps, at most an epoch of MNIST."""
    count = BATCH * steps
    if data_dir is None:
        return Images(MNIST, examples=count, batch_size=BATCH).train_set
    found, _ = Mnist(data_dir, download=False).read()
    return ImageDataset((found.images[:count] - 0.1307) / 0.3081, found.labels[:count])


def data_name(data_dir: Path | None) -> str:
    """What tables call it."""
    return "noisy images of class centres" if data_dir is None else "MNIST"


def module(network: str, optimizer: str = "sgd") -> Classifier:
    """A fresh one, always of the same initial weights."""
    seed_everything(0, verbose=False)
    return Classifier(NETWORKS[network](MNIST, 10), classes=10, optimizer=partial(OPTIMIZERS[optimizer]))


def train(
    trained: Classifier, data: Dataset[tuple[torch.Tensor, torch.Tensor]], *callbacks: Callback, epochs: int = 1
) -> None:
    """Fit, in an order that is always the same."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    order = torch.Generator().manual_seed(0)
    trainer.fit(trained, DataLoader(data, BATCH, shuffle=True, generator=order))
