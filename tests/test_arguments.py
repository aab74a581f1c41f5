"""What people give in place of what is expected: errors that say what to write, and writing that works."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, ScoreOnFitEnd, Scores, TrajectoryRecorder
from lightning_sgdinf.cleansing import TopK
from lightning_sgdinf.errors import ConfigurationError, LogNotFoundError, SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.estimators import FisherLinear, KohLiang, LastEpochs
from lightning_sgdinf.query import ExampleLoss, MeanLoss
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay
from lightning_sgdinf.updates.influence import (
    GeneralizedDirection,
    OriginalDirection,
    PublishedInfluenceStep,
    SecondOrderDirection,
)
from lightning_sgdinf.updates.post_hoc import SelectiveDampening, Sgd
from lightning_sgdinf.updates.repair import CertifiedRemoval, ElasticWeights, EnergyAlignment, FisherStep
from lightning_sgdinf.valuation import BetaShapley
from lightning_sgdinf.valuation.stopping import Settled

DATA = TensorDataset(torch.arange(36.0).view(12, 3).sin(), torch.arange(12) % 2)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(data: Any = DATA) -> DataLoader[Any]:
    return DataLoader(data, 4)


def fit(*callbacks: Any, train: Any = None, val: Any = None, **settings: Any) -> Net:
    settings = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False, **settings}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=list(callbacks), **quiet, **settings)
    net = Net()
    trainer.fit(net, loader() if train is None else train, loader() if val is None else val)
    return net


class Recorded:
    """A run, and the shortest ways to ask about it."""

    def __init__(self, folder: Path) -> None:
        self.recorder = TrajectoryRecorder(folder / "run.tlog")
        self.net = fit(self.recorder)
        self.runner = InfluenceRunner(progress=False, certificate="off", accelerator="cpu")

    def run(self, model: Any = None, train: Any = None, val: Any = None, **arguments: Any) -> Scores:
        given = {"log": self.recorder.path, **arguments}
        return self.runner.run(model or self.net, train or loader(), val or loader(), **given)

    def update(self, update: Any, selection: Any) -> Any:
        return self.runner.update(self.net, loader(), log=self.recorder.path, update=update, selection=selection)

    def leave_out(self, sets: Any) -> Any:
        return self.runner.counterfactuals(self.net, loader(), loader(), log=self.recorder.path, leave_out=sets)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("arguments"))


WRONG: dict[str, tuple[Callable[[Recorded], Any], str]] = {
    "recorder as log": (lambda r: r.run(log=r.recorder), r"got TrajectoryRecorder; give its path: log='.*run\.tlog'"),
    "no log": (lambda r: r.run(log=None), "expected the path of a record, or an open one, got NoneType"),
    "checkpoint as model": (lambda r: r.run("a.ckpt"), r"load it: MyModule\.load_from_checkpoint\('a.ckpt'\)"),
    "class as model": (lambda r: r.run(Net), r"got the class Net; make one, Net\(\.\.\.\)"),
    "data as loader": (lambda r: r.run(train=DATA), r"train_dataloaders: .*got the data set TensorDataset; write Data"),
    "data as val loader": (lambda r: r.run(val=DATA), r"val_dataloaders: .*got the data set TensorDataset"),
    "estimator by name": (lambda r: r.run(estimator="last_epochs"), r"write estimator=LastEpochs\(\.\.\.\)"),
    "estimator mistyped": (lambda r: r.run(estimator="sgdinfluense"), r"write estimator=SgdInfluence\(\.\.\.\)"),
    "estimator as class": (lambda r: r.run(estimator=LastEpochs), r"got the class LastEpochs; write estimator=LastEp"),
    "estimator as number": (lambda r: r.run(estimator=3), r"visit or estimate or answer or rank, such as Sgd.*got int"),
    "query by name": (lambda r: r.run(query="accuracy"), r"write query=Accuracy\(\.\.\.\)"),
    "query as class": (lambda r: r.run(query=MeanLoss), r"got the class MeanLoss; write query=MeanLoss\(\.\.\.\)"),
    "one id": (lambda r: r.run(query=ExampleLoss(3)), r"got 3; write \[3\]"),  # type: ignore[arg-type]
    "a far id": (lambda r: r.run(query=ExampleLoss([10**9])), r"expected some of 0 \.\. 11, got \[1000000000\]"),
    "update as class": (lambda r: r.update(CounterfactualReplay, Selection()), "write update=CounterfactualReplay"),
    "ids as selection": (lambda r: r.update(CounterfactualReplay(), [1]), r"such as Selection\(\.\.\.\), got list"),
    "far ids": (lambda r: r.update(CounterfactualReplay(), Selection(drop=(10**9,))), "expected ids below 12"),
    "ids for sets": (lambda r: r.leave_out([1, 2]), r"expected sets of example ids, as \[\[3\], \[5, 8\]\]"),
    "halves": (lambda r: r.leave_out([[1.5]]), r"expected sets of example ids"),
    "k as float": (lambda r: TopK(3.0), "k: expected a whole number of at least 0, got 3.0; write 3"),  # type: ignore[arg-type]
    "k below": (lambda r: TopK(-1), "k: expected a whole number of at least 0, got -1"),
    "n as float": (lambda r: LastEpochs(1.5), r"n: expected a whole number of at least 1, got 1\.5$"),  # type: ignore[arg-type]
    "devices as text": (lambda r: InfluenceRunner(devices="1"), "devices: expected a whole number"),  # type: ignore[arg-type]
    "bytes as text": (lambda r: InfluenceRunner(memory_bytes="2GB"), "memory_bytes: expected a whole"),  # type: ignore[arg-type]
    "fit end: estimator": (lambda r: ScoreOnFitEnd("a.tlog", estimator="tracin"), r"estimator=TracIn\("),  # type: ignore[arg-type]
    "fit end: query": (lambda r: ScoreOnFitEnd("a.tlog", query=MeanLoss), r"query=MeanLoss\("),  # type: ignore[arg-type]
    "fit end: runner": (lambda r: ScoreOnFitEnd("a.tlog", runner=InfluenceRunner), "runner=Inf"),  # type: ignore[arg-type]
    "fit end: shown": (lambda r: ScoreOnFitEnd("a.tlog", shown=2.5), "shown: expected a whole"),  # type: ignore[arg-type]
    "fit end: recorder": (lambda r: ScoreOnFitEnd(r.recorder), r"TrajectoryRecorder; write recorder="),  # type: ignore[arg-type]
    "recorder without path": (lambda r: TrajectoryRecorder(None), "expected a path, got NoneType, such as"),  # type: ignore[arg-type]
    "unknown field": (lambda r: TrajectoryRecorder("runs/{epoch}.tlog"), r"the fields \{name\} and \{version\}, got"),
    "open brace": (lambda r: TrajectoryRecorder("runs/{name.tlog"), r"write \{\{ and \}\} for braces"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_argument_that_cannot_be_meant_is_refused_with_what_to_write(recorded: Recorded, wrong: str) -> None:
    call, message = WRONG[wrong]
    with pytest.raises(ConfigurationError, match=message):
        call(recorded)


def test_a_log_that_was_never_recorded_asks_for_the_recorder(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(LogNotFoundError, match="Was a TrajectoryRecorder with this path among the callbacks"):
        recorded.run(log=tmp_path / "never.tlog")


def test_an_empty_training_set_is_refused_by_the_recorder(tmp_path: Path) -> None:
    empty = loader(TensorDataset(torch.empty(0, 3), torch.empty(0).long()))
    with pytest.raises(UnsupportedRunError, match="training data set TensorDataset is empty"):
        fit(TrajectoryRecorder(tmp_path / "run.tlog"), train=empty)


def test_several_validation_loaders_are_refused_before_training_unless_one_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"runner=InfluenceRunner\(val_loader=0\)"):
        fit(ScoreOnFitEnd(tmp_path / "a.tlog"), val=[loader(), loader()])
    assert not (tmp_path / "a.tlog").exists()
    chosen = ScoreOnFitEnd(tmp_path / "b.tlog", runner=InfluenceRunner(val_loader=1, progress=False, accelerator="cpu"))
    fit(chosen, val=[loader(), loader()])
    assert chosen.failure is None
    assert chosen.scores is not None


def test_a_path_with_fields_gives_each_fit_a_log_of_its_own(tmp_path: Path) -> None:
    text = str(tmp_path / "{name}-{version}.tlog")
    recorders = [TrajectoryRecorder(text) for _ in range(2)]
    for recorder in recorders:
        fit(recorder)
    assert [recorder.path.name for recorder in recorders] == ["Net-version_0.tlog", "Net-version_1.tlog"]
    again = recorders[0]
    fit(again)
    assert again.path.name == "Net-version_2.tlog"
    logger = pl.loggers.CSVLogger(tmp_path, name="wines", version=7)
    with_logger = TrajectoryRecorder(text)
    fit(with_logger, logger=logger, log_every_n_steps=1)
    assert with_logger.path.name == "wines-version_7.tlog"
    with pytest.raises(SgdInfluenceError, match=r"wines-version_7\.tlog exists"):
        fit(TrajectoryRecorder(text), logger=logger, log_every_n_steps=1)


def test_a_resumed_fit_finds_the_log_that_its_template_made(tmp_path: Path) -> None:
    text = str(tmp_path / "{name}-{version}.tlog")
    first = TrajectoryRecorder(text)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, callbacks=[first], logger=False, **quiet, enable_checkpointing=False)
    trainer.fit(Net(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = TrajectoryRecorder(text, resume="require")
    trainer = pl.Trainer(max_epochs=2, callbacks=[second], logger=False, **quiet, enable_checkpointing=False)
    trainer.fit(Net(), loader(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert second.path == first.path


def test_a_notebook_shows_both_ends_and_what_is_known(recorded: Recorded) -> None:
    scores = recorded.run()
    page = scores._repr_html_()
    assert page.count("<table>") == 2
    for part in (*scores.summary(), "Most harmful", "Most helpful"):
        assert part.replace("'", "&#x27;") in page


FINITE: dict[Callable[..., Any], tuple[str, ...]] = {
    BetaShapley: ("alpha", "beta"),
    CertifiedRemoval: ("penalty", "sigma", "epsilon", "delta"),
    ElasticWeights: ("damping", "rate", "momentum"),
    partial(EnergyAlignment, None): ("step_size",),
    FisherLinear: ("damping",),
    FisherStep: ("damping", "size"),
    GeneralizedDirection: ("damping",),
    KohLiang: ("damping",),
    OriginalDirection: ("damping",),
    PublishedInfluenceStep: ("norm",),
    SecondOrderDirection: ("damping",),
    SelectiveDampening: ("selection_weight", "dampening"),
    Sgd: ("learning_rate", "momentum", "weight_decay"),
    Settled: ("change",),
}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("make", "name"), [(make, name) for make, names in FINITE.items() for name in names])
def test_numbers_that_are_none_are_refused(make: Callable[..., Any], name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        make(**{name: value})
