"""Loaders that are not the plain one: lists of indices, streams, batches that are objects with slots."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.baselines import LossBaseline
from lightning_sgdinf.errors import ConfigurationError, DataMismatchError, UnsupportedRunError
from lightning_sgdinf.query import ExampleLoss
from tests.runner.hook_situations import SIZE, TRAIN, VALIDATION, Net

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "precision": "64-true",
    "max_epochs": 2,
}


class Listed(Dataset[Any]):
    """Gives a whole batch for a list of indices, and knows of nothing else."""

    def __init__(self, data: Any) -> None:
        self.x, self.y = data.tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: list[int]) -> Any:
        assert isinstance(indices, list)
        return self.x[indices], self.y[indices]


class Lists:
    """A sampler of lists that is no `BatchSampler`; the last has one index."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [11])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from VALIDATION


def runner(**settings: Any) -> InfluenceRunner:
    return InfluenceRunner(accelerator="cpu", progress=False, **{"certificate": "off", **settings})


def recorded(path: Path, train: Any, validation: Any, net: Any = None, **options: Any) -> tuple[Any, pl.Trainer]:
    net = net or Net()
    trainer = pl.Trainer(callbacks=[TrajectoryRecorder(path, **options)], **QUIET)
    trainer.fit(net, train, validation)
    return net, trainer


def samplers() -> dict[str, Callable[[], Any]]:
    return {
        "BatchSampler": lambda: BatchSampler(SequentialSampler(TRAIN), SIZE, False),
        "another": Lists,
    }


@pytest.mark.parametrize("name", [*samplers()])
def test_a_data_set_that_is_asked_for_lists_is_scored_as_if_asked_one_by_one(tmp_path: Path, name: str) -> None:
    make = samplers()[name]
    plain, listed = [
        DataLoader(TRAIN, batch_sampler=make()),
        DataLoader(Listed(TRAIN), batch_size=None, sampler=make()),
    ]
    lists = BatchSampler(SequentialSampler(VALIDATION), 7, False)
    asked = [
        DataLoader(VALIDATION, batch_sampler=lists),
        DataLoader(Listed(VALIDATION), batch_size=None, sampler=lists),
    ]
    results = []
    for number, (train, validation) in enumerate(zip([plain, listed], asked, strict=True)):
        log = tmp_path / f"{number}.tlog"
        net, _ = recorded(log, train, validation)
        checked: Any = "fast" if train is listed and name == "another" else "off"
        one = runner(certificate=checked).run(net, train, validation, log=log)
        single = runner().run(net, train, validation, log=log, query=ExampleLoss([3, 9])).values
        losses = runner().run(net, train, validation, log=log, estimator=LossBaseline()).values
        results.append((one.values, single, losses))
    for expected, given in zip(*results, strict=True):
        assert bool(expected.any())
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-15)


def test_validation_data_may_be_a_stream(tmp_path: Path) -> None:
    train = DataLoader(TRAIN, batch_size=SIZE)
    net, _ = recorded(tmp_path / "run.tlog", train, DataLoader(VALIDATION, batch_size=7))
    expected = runner().run(net, train, DataLoader(VALIDATION, batch_size=7), log=tmp_path / "run.tlog").values
    stream = DataLoader(Stream(), batch_size=7)
    for given in (stream, Batches()):
        values = runner().run(net, train, given, log=tmp_path / "run.tlog").values
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
    with pytest.raises(ConfigurationError, match=r"are a stream.*MeanLoss"):
        runner().run(net, train, stream, log=tmp_path / "run.tlog", query=ExampleLoss([0]))


class Batches:
    """No DataLoader, but gives batches."""

    def __iter__(self) -> Iterator[Any]:
        yield from DataLoader(VALIDATION, batch_size=7)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from VALIDATION


def test_of_an_endless_stream_as_much_is_read_as_a_validation_read(tmp_path: Path) -> None:
    train, net = DataLoader(TRAIN, batch_size=SIZE), Net()
    endless = DataLoader(Endless(), batch_size=10)
    callbacks = [TrajectoryRecorder(tmp_path / "run.tlog")]
    pl.Trainer(callbacks=callbacks, limit_val_batches=2, **QUIET).fit(net, train, endless)
    values = runner().run(net, train, endless, log=tmp_path / "run.tlog").values
    expected = runner().run(net, train, DataLoader(VALIDATION, batch_size=10), log=tmp_path / "run.tlog").values
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)


@dataclass(slots=True)
class Slotted:
    x: Tensor
    y: Tensor


class Unpacks(Net):
    def loss(self, batch: Any, penalty: Any = 0.0) -> Tensor:
        return super().loss((batch.x, batch.y), penalty)


def join(items: list[Any]) -> Slotted:
    return Slotted(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))


def test_batches_with_slots_are_cast_and_compared(tmp_path: Path) -> None:
    train, validation = (DataLoader(data, batch_size=SIZE, collate_fn=join) for data in (TRAIN, VALIDATION))
    net, _ = recorded(tmp_path / "run.tlog", train, validation, Unpacks())
    scores = runner(precision="64-true").run(net, train, validation, log=tmp_path / "run.tlog")
    plain = DataLoader(TRAIN, batch_size=SIZE), DataLoader(VALIDATION, batch_size=SIZE)
    other, _ = recorded(tmp_path / "plain.tlog", *plain)
    expected = runner().run(other, *plain, log=tmp_path / "plain.tlog").values
    torch.testing.assert_close(scores.values, expected, rtol=1e-12, atol=0)
    changed = copy.deepcopy(TRAIN)
    changed.tensors[0][2] += 1
    with pytest.raises(DataMismatchError, match="differs from the one trained on"):
        runner().run(net, DataLoader(changed, batch_size=SIZE, collate_fn=join), validation, log=tmp_path / "run.tlog")


def test_the_trainer_has_its_own_loaders_when_the_fit_is_over(tmp_path: Path) -> None:
    train, validation = DataLoader(TRAIN, batch_size=SIZE), DataLoader(VALIDATION, batch_size=7)
    net, trainer = recorded(tmp_path / "run.tlog", train, validation)
    assert trainer.train_dataloader.dataset is TRAIN
    assert type(trainer.train_dataloader.dataset) is type(TRAIN)
    values = runner().run(net, trainer.train_dataloader, trainer.val_dataloaders, log=tmp_path / "run.tlog").values
    assert torch.equal(values, runner().run(net, train, validation, log=tmp_path / "run.tlog").values)


class SetUpByHand(pl.LightningDataModule):
    """Uses up what ``setup`` needs."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = (TRAIN, VALIDATION)

    def setup(self, stage: str) -> None:
        self.train, self.validation = self.raw
        self.raw = None

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=SIZE)

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, batch_size=7)


def test_a_data_module_that_was_set_up_by_hand_gives_its_loaders(tmp_path: Path) -> None:
    data = SetUpByHand()
    data.setup("fit")
    net, _ = recorded(tmp_path / "run.tlog", data.train_dataloader(), data.val_dataloader())
    with pytest.raises(ConfigurationError, match=r"SetUpByHand.setup\('fit'\) raised TypeError.*train_dataloader\(\)"):
        runner().run(net, datamodule=data, log=tmp_path / "run.tlog")
    assert len(runner().run(net, data.train_dataloader(), data.val_dataloader(), log=tmp_path / "run.tlog")) == 12


def test_indices_in_tuples_are_refused_while_recording(tmp_path: Path) -> None:
    class Tuples(Listed):
        def __getitem__(self, indices: Any) -> Any:
            return super().__getitem__([*indices])

    loader = DataLoader(Tuples(TRAIN), batch_size=None, sampler=[(0, 1, 2), (3, 4, 5)])
    with pytest.raises(UnsupportedRunError, match="not in a list"):
        recorded(tmp_path / "run.tlog", loader, DataLoader(VALIDATION))
