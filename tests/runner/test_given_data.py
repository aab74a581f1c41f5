"""Data may be given in the ways in which ``Trainer.fit`` takes it."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.testing import small_run


class SetUpLate(L.LightningDataModule):
    """Has no data before `setup`."""

    def __init__(self, train: Any, validation: Any) -> None:
        super().__init__()
        self.given = (train, validation)

    def setup(self, stage: str) -> None:
        self.train, self.validation = self.given

    def train_dataloader(self) -> Any:
        return self.train

    def val_dataloader(self) -> Any:
        return self.validation


def test_a_data_module_in_the_place_of_training_loaders() -> None:
    run = small_run()
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    expected = runner.run(run.model, run.train, run.validation, log=run.log).values
    assert torch.equal(runner.run(run.model, SetUpLate(run.train, run.validation), log=run.log).values, expected)
    by_name = runner.run(run.model, datamodule=SetUpLate(run.train, run.validation), log=run.log).values
    assert torch.equal(by_name, expected)
    with runner.truth(run.model, SetUpLate(run.train, run.validation), log=run.log) as truth:
        assert len(truth.measure([[0]]).values) == 1


def test_loaders_and_a_data_module_are_one_too_many() -> None:
    run = small_run()
    with pytest.raises(ConfigurationError, match="both train_dataloaders and a datamodule"):
        InfluenceRunner(accelerator="cpu", progress=False).run(
            run.model, run.train, datamodule=SetUpLate(run.train, run.validation), log=run.log
        )
