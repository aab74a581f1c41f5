"""Training with the recorder on: the one way in which every study makes the run that it looks at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.errors import LogError
from lightning_sgdinf.log import RunLog, state_checksum
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.studies.cache import load_or_compute, read_json
from lightning_sgdinf.zoo import Classifier, ImageData, VectorData

logger = printable_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A trained model.

    Attributes:
        model: With the final parameters.
        seconds: Wall time of the training.
        metrics: Final values of what the model logs, by name.
    """

    model: Any
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A recipe for training a new model.

    Attributes:
        seed: Of the initial model and of everything that training draws.
        new_model: Makes an untrained model.
        new_trainer: Makes a Trainer, given further arguments.
    """

    seed: int
    new_model: Callable[[], LightningModule]
    new_trainer: Callable[..., Trainer]

    def fit(
        self, *, recorder: TrajectoryRecorder | None = None, data: Mapping[str, Any], **settings: Any
    ) -> TrainedRun:
        """Train a new model, seeded.

        Args:
            recorder: Records the run; ``None`` for a run without a record.
            data: Arguments of ``Trainer.fit``: loaders or a data module.
            **settings: Further arguments of the Trainer, which has no logger but one that is given here.
        """
        seed_everything(self.seed, verbose=False)
        model = self.new_model()
        callbacks = [] if recorder is None else [recorder]
        trainer = self.new_trainer(**{"callbacks": callbacks, "logger": False, **settings})
        began = perf_counter()
        trainer.fit(model, **data)
        seconds = perf_counter() - began
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return TrainedRun(model=model, seconds=seconds, metrics=metrics)

    def fit_dataset(
        self, dataset: Dataset[Any], like: ImageData | VectorData, recorder: TrajectoryRecorder | None = None
    ) -> TrainedRun:
        """Train a new model on a data set in shuffled batches, seeded, without validation.

        Args:
            dataset: What to train on.
            like: Says the size of the batches and the workers.
            recorder: As for `fit`.
        """
        workers = like.num_workers if isinstance(like, ImageData) else 0
        loader = DataLoader(
            dataset,
            batch_size=like.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        data = {"train_dataloaders": loader, "val_dataloaders": like.val_dataloader()}
        return self.fit(recorder=recorder, data=data, limit_val_batches=0)


def classifier_training(
    data: ImageData | VectorData, *, network: Callable[..., Any], optimizer: Callable[..., Any], **training: Any
) -> Training:
    """Return how to train a classifier of a data set.

    Args:
        data: Says the shape of an example and the classes.
        network: Makes a network from these.
        optimizer: Makes an optimizer from parameters.
        **training: Further arguments of `Training`.
    """
    classes = len(data.class_names)
    return Training(
        new_model=lambda: Classifier(network(data.input_shape, classes), classes=classes, optimizer=optimizer),
        **training,
    )


class StoredRun:
    """A recorded run in a folder: trained when it is first asked for, and again if its record was removed.

    Args:
        folder: Holds the record and, in ``run.json``, what is known of it.
        train: Trains it with a recorder.
        keep: Which states the recorder stores.

    Attributes:
        folder: As given.
        path: Of the record.
        about: Seconds, steps, bytes, checksum of the final state.
    """

    def __init__(self, folder: Path, train: Callable[[TrajectoryRecorder], TrainedRun], keep: str) -> None:
        self.folder, self.path = folder, folder / "run.tlog"
        self._train, self._keep, self._about_file = train, keep, folder / "run.json"
        self.about: dict[str, Any] = self._load()

    @contextmanager
    def log(self) -> Iterator[RunLog]:
        """Open the record; train again if it was removed."""
        if not self._is_recorded():
            before = read_json(self._about_file)
            self._about_file.unlink()
            self.about = self._load()
            if self.about["final_state"] != before["final_state"]:
                logger.warning("%s: training led elsewhere than the first time; all results are new", self.folder)
        with RunLog.open(self.path) as log:
            yield log

    def final_state(self) -> ModelState:
        """Return the trained model's state."""
        with self.log() as log:
            return log.state(len(log))

    def remove_record(self) -> None:
        """Free the disk; results stay."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _load(self) -> dict[str, Any]:
        is_cached = self._about_file.is_file()
        about = load_or_compute(self._about_file, self._record)
        suffix = " before" if is_cached else ""
        logger.info("%s: %d steps, trained in %.0f s%s", self.folder, about["steps"], about["seconds"], suffix)
        return about

    def _record(self) -> dict[str, Any]:
        logger.info("%s: training", self.folder)
        run = self._train(TrajectoryRecorder(self.path, keep=self._keep, overwrite=True))
        with RunLog.open(self.path) as log:
            final = log.state(len(log))
            return {
                "seconds": run.seconds,
                "steps": len(log),
                "record_bytes": log.size_bytes,
                "state_bytes": sum(v.numel() * v.element_size() for _, _, _, v in final.items()),
                "final_state": state_checksum(final),
            }

    def _is_recorded(self) -> bool:
        try:
            with RunLog.open(self.path) as log:
                return log.finished
        except LogError:
            return False
