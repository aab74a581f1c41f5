"""Searches of Lightning beside the recorder: they train as they would, and the training after them is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch.utils.data import DataLoader

from tests.runner.hook_situations import TRAIN, VALIDATION, Data, Formula, Net, Trained, expect, train


class Searched(Data):
    batch_size = 2

    def train_dataloader(self) -> Any:
        return DataLoader(TRAIN, batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(VALIDATION, batch_size=8)


class WithRate(Net):
    lr = 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.filterwarnings("ignore:.*weights_only.*", "ignore:.*does not have many workers.*")
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_search_for_the_batch_size(tmp_path: Path, sanity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.tuner.batch_size_scaling.garbage_collection_cuda", lambda: None)  # slow
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=2)
    run = train(tmp_path, Net(), Searched(), callbacks=[finder], num_sanity_val_steps=sanity)
    assert run.data.batch_size == 4
    expect(run.scores(), Formula())


@pytest.mark.filterwarnings("ignore:.*weights_only.*", "ignore:.*lr_scheduler.step.*")
def test_a_search_for_the_learning_rate(tmp_path: Path) -> None:
    finder = LearningRateFinder(num_training_steps=4, min_lr=0.01, max_lr=0.4)
    run: Trained = train(tmp_path, WithRate(), callbacks=[finder], enable_checkpointing=False)
    rate = run.module.lr
    expect(run.scores(), Formula(rate=lambda e, t, i: rate))
