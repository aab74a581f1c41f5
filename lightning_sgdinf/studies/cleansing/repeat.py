"""One repeat: a data split, recorded runs on it, and ways to score them and train them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning import LightningModule
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_sgdinf import random_state
from lightning_sgdinf.cleansing import halve
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.studies.recorded_run import StoredRun
from lightning_sgdinf.zoo import ImageData

SEEDS_APART = 1_000_003
"""Between the seeds of a repeat's runs: further apart than anyone numbers repeats."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A data split and the runs that are trained on it.

    Attributes:
        parts: The objects of the configuration.
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
        """Return the seed of the split, the initial model and the order of training."""
        return self.parts.seed

    @cached_property
    def _runs(self) -> dict[int, StoredRun]:
        return {}

    @cached_property
    def scoring(self) -> Subset[Any]:
        """Return the validation examples whose mean loss the scores are about."""
        return self._halves[0] if self.scored_on == "half" else Subset(self.data.val_set, range(len(self.data.val_set)))

    @cached_property
    def choosing(self) -> Subset[Any]:
        """Return the validation examples for choosing a number; those the scores are about, if they are about all."""
        return self._halves[1] if self.scored_on == "half" else self.scoring

    @cached_property
    def _halves(self) -> tuple[Subset[Any], Subset[Any]]:
        return halve(len(self.data.val_set), seed=self.seed, labels=self.data.val_set.labels).subsets(self.data.val_set)

    def loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Return batches in order, without augmentation."""
        return DataLoader(dataset, batch_size=self.data.eval_batch_size)

    def new_model(self) -> LightningModule:
        """Return an untrained model; random generators are afterwards as before."""
        with random_state.preserved():
            return self.parts.training(self.data, self.seed).new_model()

    def run(self, number: int = 0) -> StoredRun:
        """Return the ``number``-th recorded run on this split, trained if it is not there.

        Args:
            number: 0 for the one that is judged; others differ in initial model and order.
        """
        if number not in self._runs:
            training = self.parts.training(self.data, self.seed + SEEDS_APART * number)
            self._runs[number] = StoredRun(
                self.folder / f"run_{number}",
                lambda recorder: training.fit_dataset(self.data.train_set, self.data, recorder),
                self.keep,
            )
        return self._runs[number]

    def fit(self, dataset: Any, seed: int) -> LightningModule:
        """Train a new model without a record.

        Args:
            dataset: The data to train on.
            seed: Of the initial model and of the order.
        """
        return self.parts.training(self.data, seed).fit_dataset(dataset, self.data).model

    @contextmanager
    def opened(self, stored: StoredRun) -> Iterator[OpenedRun]:
        """Open a run with model and data."""
        runner = self.parts.runner(certificate="off", progress=False)
        with stored.log() as log, runner.open(self.new_model(), self.data.train_dataloader(), log=log) as run:
            yield run
