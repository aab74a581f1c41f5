"""Data may be given in the ways in which ``Trainer.fit`` takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, random_split

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import ConfigurationError, DataMismatchError
from lightning_sgdinf.testing import small_run
from tests.runner.hook_situations import TRAIN, Data, Net, train


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


class Splits(Data):
    """Splits at random in ``setup``, which is called again by who asks for it."""

    def setup(self, stage: str) -> None:
        self.train, self.validation = random_split(TRAIN, [8, 4])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, batch_size=4)


class SplitsBySeed(Splits):
    def setup(self, stage: str) -> None:
        self.train, self.validation = random_split(TRAIN, [8, 4], generator=torch.Generator().manual_seed(3))


class TornDown(SplitsBySeed):
    def teardown(self, stage: str) -> None:
        del self.train, self.validation


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
def test_a_data_module_that_splits_anew_keeps_the_split_of_training(tmp_path: Path, digests: bool) -> None:
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", digest_batches=digests)
    run = train(tmp_path, Net(), Splits(), recorder=recorder)
    parts = run.data.train, run.data.validation
    by_loaders = InfluenceRunner(accelerator="cpu", certificate="off", progress=False).run(
        run.module, run.data.train_dataloader(), run.data.val_dataloader(), log=run.path
    )
    assert torch.equal(run.scores().values, by_loaders.values)
    assert (run.data.train, run.data.validation) == parts
    if digests:
        with pytest.raises(DataMismatchError, match=r"Splits\.setup splits the data anew .* very data module that was"):
            run.scores(data=Splits())


@pytest.mark.parametrize("kind", [SplitsBySeed, TornDown], ids=lambda kind: kind.__name__)
def test_a_data_module_is_set_up_again_where_it_has_to_be(tmp_path: Path, kind: Any) -> None:
    run = train(tmp_path, Net(), kind())
    assert torch.equal(run.scores().values, run.scores(data=kind()).values)
