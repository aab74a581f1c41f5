"""What has to be kept of a run for each estimator: final parameters, the last epoch, every step.

    python benchmarks/cache_size.py [--data-dir FOLDER_WITH_MNIST] [--steps 16] [--epochs 2] [--quick]

The network of the storage-efficient method's paper (six convolutions) is trained on MNIST in its setting: SGD with
learning rate 0.05, batches of 32, crops after padding by 4, flips. Its 20 epochs of 1,563 steps take hours on a CPU, so
by default the bytes of a state are measured on some steps of two epochs, and multiplied by the number of states;
``--steps 1563 --epochs 20`` stores them all. What is kept of a step (ids, learning rate, random numbers) does not
depend on the network and is measured on a whole epoch of a linear one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import MNIST, Images, quiet, table
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from lightning_sgdinf import RunLog, TrajectoryRecorder
from lightning_sgdinf.zoo import Classifier, ImageDataset, Mnist, logistic_regression, six_conv_net

BATCH, EPOCHS, STEPS = 32, 20, 1563
MEGABYTE = 1e6
STATES = ("state", "anchor")
"""What datasets of the log hold them."""
KEEPS = {
    "final": ("`FinalParameters`", 1, "1.236"),
    "last_epochs(1)": ("`LastEpochs(1)`", STEPS + 1, "1,932"),
    "every_step": ("`SgdInfluence`", EPOCHS * STEPS + 1, "-"),
}
"""What is kept, to the estimator it is for, the number of states and the published megabytes."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Of a record.

    Attributes:
        stored: Number of states.
        states: Their bytes.
        rest: All other bytes: ids, learning rates, random numbers, headers.
        steps: Number of steps.
    """

    stored: int
    states: int
    rest: int
    steps: int

    @classmethod
    def of(cls, path: Path) -> Kept:
        """A record on disk."""
        with RunLog.open(path) as log:
            parts = [part for segment in log.segments() for part in segment.sizes().items()]
            states = sum(size for name, size in parts if name.split("/")[0].removesuffix("_end") in STATES)
            states += sum(value.nbytes for *_, value in log.state(len(log)).items())  # it has a file of its own
            return cls(len(log.state_indices), states, log.size_bytes - states, len(log))


def training_data(data_dir: Path | None, steps: int) -> ImageDataset:
    """Examples for so many steps, augmented as in the paper."""
    count = BATCH * steps
    if data_dir is None:
        found = Images(MNIST, examples=count, batch_size=BATCH).train_set
        images, labels = found.images, found.labels
    else:
        pool, _ = Mnist(data_dir, download=False).read()
        images, labels = pool.images[:count], pool.labels[:count]
    return ImageDataset(images, labels, crop_padding=4, flip=True, mean=[0.5], std=[0.5])


def recorded(network: Callable[..., nn.Module], data: ImageDataset, keep: str, epochs: int, path: Path) -> Kept:
    """Train, and see what the record takes."""
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(path, keep=keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    order = torch.Generator().manual_seed(0)
    trainer.fit(Classifier(network(MNIST, 10), classes=10), DataLoader(data, BATCH, shuffle=True, generator=order))
    return Kept.of(path)


def rows(data_dir: Path | None, steps: int, epochs: int, epoch: int, folder: Path) -> Iterator[tuple[str, ...]]:
    """What each way of keeping takes for a run of the paper's length."""
    whole = recorded(logistic_regression, training_data(data_dir, epoch), "final", 1, folder / "steps.tlog")
    of_steps = whole.rest / whole.steps * STEPS * EPOCHS
    data = training_data(data_dir, steps)
    for keep, (estimator, states, published) in KEEPS.items():
        kept = recorded(six_conv_net, data, keep, epochs, folder / f"{keep}.tlog")
        one = kept.states / kept.stored
        sizes = (size / MEGABYTE for size in (one, one * states, of_steps, one * states + of_steps))
        yield f"`{keep}`", estimator, f"{states:,}", *(f"{size:,.3f}" for size in sizes), published


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    named = os.environ.get("SGDINF_DATA_DIR")
    parser.add_argument("--data-dir", type=Path, default=Path(named) if named else None, help="folder with MNIST")
    parser.add_argument("--steps", type=int, default=16, help="of an epoch, to measure states")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps, only to see that it runs")
    chosen = parser.parse_args()
    quiet()
    steps, epoch = (2, 4) if chosen.quick else (chosen.steps, STEPS)
    head = ("keep", "for", "states", "MB each", "states, MB", "steps, MB", "in all, MB", "published, MB")
    with tempfile.TemporaryDirectory() as folder:
        print(table(head, rows(chosen.data_dir, steps, chosen.epochs, epoch, Path(folder))))


if __name__ == "__main__":
    main()
