"""One repeat: a data split, a recorded run on it, and ways to open, score and train it again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import seed_everything
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_sgdinf import random_state
from lightning_sgdinf.cleansing import halve
from lightning_sgdinf.errors import LogError
from lightning_sgdinf.log import RunLog, state_checksum
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.tasks.job import Parts
from lightning_sgdinf.tasks.pieces import found_or_made, read_json
from lightning_sgdinf.zoo import Classifier, ImageData

_say = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A data split and what is trained on it.

    Attributes:
        parts: What the configuration gave.
        data: The split.
        folder: Where this repeat's results go.
        keep: Which states the recorder stores.
        scored_on: ``"half"``: scores are about one half of the validation set, and the other is for choosing;
            ``"all"``: they are about all of it.
    """

    parts: Parts
    data: ImageData
    folder: Path
    keep: str
    scored_on: str

    @property
    def seed(self) -> int:
        """Of the split, the initial model and the order of training."""
        return self.parts.seed

    @cached_property
    def _runs(self) -> dict[int, RecordedRun]:
        return {}

    @cached_property
    def scoring(self) -> Subset[Any]:
        """Validation examples whose mean loss the scores are about."""
        return self._halves[0] if self.scored_on == "half" else Subset(self.data.val_set, range(len(self.data.val_set)))

    @cached_property
    def choosing(self) -> Subset[Any]:
        """Validation examples for choosing a number; those the scores are about, if they are about all."""
        return self._halves[1] if self.scored_on == "half" else self.scoring

    @cached_property
    def _halves(self) -> tuple[Subset[Any], Subset[Any]]:
        return halve(len(self.data.val_set), seed=self.seed, labels=self.data.val_set.labels).subsets(self.data.val_set)

    def loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """In order, without augmentation."""
        return DataLoader(dataset, batch_size=self.data.eval_batch_size)

    def new_model(self) -> Classifier:
        """An untrained model; random generators are afterwards as before."""
        with random_state.preserved():
            return self._model()

    def run(self, number: int = 0) -> RecordedRun:
        """The ``number``-th recorded run on this split, trained if it is not there."""
        if number not in self._runs:
            run = RecordedRun(self, number)
            run.train()
            self._runs[number] = run
        return self._runs[number]

    def fit(self, dataset: Any, seed: int, callbacks: list[Any] | None = None) -> Classifier:
        """Train a new model.

        Args:
            dataset: What to train on.
            seed: Of the initial model and of the order.
            callbacks: Of the Trainer.
        """
        seed_everything(seed, verbose=False)
        model = self._model()
        order = torch.Generator().manual_seed(seed)
        workers = self.data.num_workers
        loader = DataLoader(
            dataset,
            batch_size=self.data.batch_size,
            shuffle=True,
            generator=order,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        trainer = self.parts.trainer(callbacks=callbacks or [], logger=False, limit_val_batches=0)
        trainer.fit(model, loader, self.data.val_dataloader())
        return model

    def _model(self) -> Classifier:
        classes = len(self.data.class_names)
        network = self.parts.network(self.data.image_shape, classes)
        return Classifier(network, classes=classes, optimizer=self.parts.optimizer)


class RecordedRun:
    """A training run with its record.

    Args:
        repeat: The split it is trained on.
        number: 0 for the one that is judged; others differ in initial model and order.

    Attributes:
        path: Of the record.
        about: What is known of it: seconds, bytes, steps, checksum of the final state.
    """

    def __init__(self, repeat: Repeat, number: int) -> None:
        self.repeat = repeat
        self.seed = repeat.seed + SEEDS_APART * number
        self.folder = repeat.folder / f"run_{number}"
        self.path = self.folder / "run.tlog"
        self.about: dict[str, Any] = {}

    def train(self) -> None:
        """Train it, unless it was."""
        place = self.folder / "run.json"
        there = place.is_file()
        self.about = found_or_made(place, self._train)
        steps, seconds = self.about["steps"], self.about["seconds"]
        _say.info("%s: %d steps, trained in %.0f s%s", self.folder, steps, seconds, " before" if there else "")

    @contextmanager
    def log(self) -> Iterator[RunLog]:
        """Its record; trained again if that was removed."""
        if not self._recorded():
            place = self.folder / "run.json"
            before = read_json(place)
            place.unlink()
            self.train()
            if self.about["final_state"] != before["final_state"]:
                _say.warning("%s: training led elsewhere than the first time; all results are made anew", self.folder)
        with RunLog.open(self.path) as log:
            yield log

    @contextmanager
    def opened(self) -> Iterator[OpenedRun]:
        """Open its record with model and data."""
        repeat = self.repeat
        runner = repeat.parts.runner(certificate="off", progress=False)
        with self.log() as log, runner.open(repeat.new_model(), self.train_loader(), log=log) as run:
            yield run

    def train_loader(self) -> DataLoader[Any]:
        """Loads the examples; which come when is in the record."""
        return self.repeat.data.train_dataloader()

    def final_state(self) -> ModelState:
        """The trained model's."""
        with self.log() as log:
            return log.state(len(log))

    def remove_record(self) -> None:
        """Free the disk; results stay."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _train(self) -> dict[str, Any]:
        repeat = self.repeat
        _say.info("%s: training", self.folder)
        recorder = TrajectoryRecorder(self.path, keep=repeat.keep, overwrite=True)
        began = perf_counter()
        repeat.fit(repeat.data.train_set, self.seed, [recorder])
        seconds = perf_counter() - began
        with RunLog.open(self.path) as log:
            final = log.state(len(log))
            return {
                "seconds": seconds,
                "steps": len(log),
                "record_bytes": log.size_bytes,
                "state_bytes": sum(v.numel() * v.element_size() for _, _, _, v in final.items()),
                "final_state": state_checksum(final),
            }

    def _recorded(self) -> bool:
        try:
            with RunLog.open(self.path) as log:
                return log.finished
        except LogError:
            return False


SEEDS_APART = 1_000_003
"""Between the seeds of a repeat's runs: further apart than anyone numbers repeats."""
