"""ScoreOnFitEnd: a fit that ends with its ranking, and is otherwise the fit it was."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split

from lightning_sgdinf import InfluenceRunner, RunLog, ScoreOnFitEnd, Scores, TrajectoryRecorder, random_state
from lightning_sgdinf.baselines import RandomBaseline
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import ExampleLoss

N, SIDE, CLASSES, EPOCHS = 24, 6, 3, 2


class Pictures(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4), nn.Dropout(0.1), nn.Linear(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


class SplitAtRandom(pl.LightningDataModule):
    """As many are written: another split every time it is set up."""

    def setup(self, stage: str) -> None:
        whole = TensorDataset(torch.rand(N + 6, 1, SIDE, SIDE), torch.randint(0, CLASSES, (N + 6,)))
        self.train, self.val = random_split(whole, (N, 6))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=6)


def loaders() -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N + 6, 1, SIDE, SIDE, generator=generator)
    y = torch.randint(0, CLASSES, (N + 6,), generator=generator)
    return (
        DataLoader(TensorDataset(x[:N], y[:N]), batch_size=8, shuffle=True),
        DataLoader(TensorDataset(x[N:], y[N:]), batch_size=6),
    )


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, **quiet, **options}
    return pl.Trainer(callbacks=list(callbacks), **settings)


def fitted(*callbacks: pl.Callback, **options: Any) -> tuple[Pictures, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    model = Pictures()
    chosen = trainer(*callbacks, **options)
    chosen.fit(model, *loaders())
    return model, chosen


def unchecked() -> InfluenceRunner:
    return InfluenceRunner(accelerator="cpu", certificate="off", progress=False, per_epoch=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit_end")


@pytest.fixture(scope="module")
def scored(place: Path) -> tuple[ScoreOnFitEnd, Pictures, dict[str, bytes]]:
    """A fit with every default but the loggers, and the state of the generators after it."""
    callback = ScoreOnFitEnd(place / "run.tlog", shown=5)
    logger = CSVLogger(place, name="metrics", version="")
    model, chosen = fitted(callback, logger=logger, log_every_n_steps=1)
    assert chosen.state.finished
    return callback, model, random_state.capture()


def test_scores_are_those_of_a_runner_of_ones_own(scored: Any, place: Path) -> None:
    callback, model, _ = scored
    assert callback.failure is None
    train, val = loaders()
    by_hand = unchecked().run(model, train, val, log=place / "run.tlog")
    assert torch.equal(callback.scores.values, by_hand.values)
    assert callback.scores.values.abs().max() > 0
    assert callback.scores.certificate.gradient_check is not None
    assert torch.equal(Scores.load(place / "run.report" / "scores.h5").values, callback.scores.values)


def test_model_and_generators_are_as_after_a_fit_without_it(scored: Any, place: Path) -> None:
    _, model, after = scored
    plain, chosen = fitted(TrajectoryRecorder(place / "plain.tlog"))
    assert random_state.capture() == after
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    assert model.training == plain.training
    assert chosen.callback_metrics.keys() == model.trainer.callback_metrics.keys() == {"loss"}


def test_page_and_tables_show_pictures_labels_and_predictions(scored: Any, place: Path) -> None:
    callback, model, _ = scored
    page = callback.report.read_text(encoding="utf-8")
    assert callback.report == place / "run.report" / "report.html"
    assert "data:image/" in page
    with (place / "run.report" / "tables" / "most-harmful.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    dataset = loaders()[0].dataset
    ids = [int(row["example id"]) for row in rows]
    assert tuple(ids) == callback.scores.most_harmful(5).example_ids
    with torch.no_grad():
        expected = [str(int(model.eval()(dataset[i][0][None]).argmax())) for i in ids]
    assert [row["prediction"] for row in rows] == expected
    assert [row["label"] for row in rows] == [str(int(dataset[i][1])) for i in ids]


def test_the_trainers_logger_gets_the_numbers(scored: Any, place: Path) -> None:
    callback, _, _ = scored
    with (place / "metrics" / "metrics.csv").open(newline="") as file:
        logged = [float(row["report/largest_harm"]) for row in csv.DictReader(file) if row.get("report/largest_harm")]
    assert logged == [pytest.approx(callback.scores.harm().max().item())]


def test_a_recorder_of_ones_own_and_other_questions(tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(tmp_path / "own.tlog", keep="every(2)")
    callback = ScoreOnFitEnd(query=ExampleLoss([0, 2]), runner=unchecked(), shown=2)
    fitted(callback, recorder)
    assert callback.scores is not None
    assert callback.scores.queries == ("loss of validation example 0", "loss of validation example 2")
    given = ScoreOnFitEnd(recorder=TrajectoryRecorder(tmp_path / "given.tlog"), estimator=RandomBaseline(), shown=2)
    model, chosen = fitted(given)
    assert (tmp_path / "given.report" / "report.html").exists()
    chosen.fit_loop.max_epochs = EPOCHS + 1
    chosen.fit(model, *loaders())  # a second fit is recorded and scored beside the first
    assert (tmp_path / "given-2.report" / "report.html").exists()


def test_a_data_module_that_splits_at_random_is_not_set_up_again(tmp_path: Path, unreported: None) -> None:
    del unreported
    callback = ScoreOnFitEnd(tmp_path / "run.tlog", runner=unchecked(), shown=2)
    trainer(callback).fit(Pictures(), datamodule=SplitAtRandom())
    assert callback.failure is None
    assert callback.scores is not None
    assert len(callback.scores) == N


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores alone; the report costs seconds and is looked at elsewhere."""
    monkeypatch.setattr(ScoreOnFitEnd, "_tell", lambda *arguments: None)


class Stopped(pl.Callback):
    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        raise self.exception


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), ValueError("loss exploded")])
def test_an_interrupted_fit_is_not_scored_and_says_so(
    exception: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = ScoreOnFitEnd(tmp_path / "run.tlog")
    with caplog.at_level(logging.INFO, "lightning.pytorch"), pytest.raises((SystemExit, ValueError)):
        fitted(callback, Stopped(exception))
    assert callback.scores is None
    assert callback.failure == f"the fit was interrupted ({type(exception).__name__})"
    assert "InfluenceRunner().run(model, ..., log=" in caplog.text
    assert not (tmp_path / "run.report").exists()
    with RunLog.open(tmp_path / "run.tlog") as log:
        assert len(log) == N // 8


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(loaders()[0].dataset)  # type: ignore[call-overload]


def test_a_replay_that_is_refused_does_not_take_the_trained_model_along(tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", strict=False)
    callback = ScoreOnFitEnd(recorder=recorder)
    model = Pictures()
    with pytest.warns(UserWarning, match="IterableDataset"):  # the recorder's, and then ours
        trainer(callback).fit(model, DataLoader(Stream(), batch_size=8), loaders()[1])
    assert callback.scores is None
    assert callback.failure is not None
    assert callback.failure.startswith("UnsupportedRunError")


def test_a_renderer_that_fails_costs_the_report_alone(tmp_path: Path) -> None:
    def show(item: Any) -> str:
        raise TypeError(f"cannot show {len(item)} things")

    callback = ScoreOnFitEnd(tmp_path / "run.tlog", runner=unchecked(), show=show)
    with pytest.warns(UserWarning, match=r"the scores \(\.scores\) are not reported\. TypeError: cannot show 2 things"):
        _, chosen = fitted(callback, max_epochs=1)
    assert chosen.state.finished
    assert callback.scores is not None
    assert callback.report is None


def test_a_stream_whose_batches_are_kept_is_scored(tmp_path: Path, unreported: None) -> None:
    del unreported
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", store_batches=True)
    callback = ScoreOnFitEnd(recorder=recorder, runner=unchecked(), shown=2)
    trainer(callback, max_epochs=1).fit(Pictures(), DataLoader(Stream(), batch_size=8), loaders()[1])
    assert callback.failure is None
    assert callback.scores is not None
    assert len(callback.scores) == N


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a path or a recorder"):
        ScoreOnFitEnd(tmp_path / "a.tlog", recorder=TrajectoryRecorder(tmp_path / "b.tlog"))
    with pytest.raises(ConfigurationError, match="shown: expected a whole number of at least 1, got 0"):
        ScoreOnFitEnd(tmp_path / "a.tlog", shown=0)
    with pytest.raises(ConfigurationError, match=r"expected one TrajectoryRecorder .* got 0"):
        fitted(ScoreOnFitEnd())
    with pytest.raises(ConfigurationError, match=r"expected one TrajectoryRecorder .* got 2"):
        fitted(ScoreOnFitEnd(), *(TrajectoryRecorder(tmp_path / name) for name in ("a.tlog", "b.tlog")))
    with pytest.raises(ConfigurationError, match="no validation data"):
        trainer(ScoreOnFitEnd(tmp_path / "c.tlog")).fit(Pictures(), loaders()[0])
    assert not list(tmp_path.iterdir())


def test_a_trial_run_is_neither_recorded_nor_scored(tmp_path: Path) -> None:
    callback = ScoreOnFitEnd(tmp_path / "run.tlog")
    fitted(callback, fast_dev_run=True)
    assert callback.scores is None
    assert callback.failure == "nothing was recorded"
    assert not list(tmp_path.iterdir())
