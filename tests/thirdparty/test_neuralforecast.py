"""Forecasters of neuralforecast, which draw windows of series in a step; ``per_example_loss=`` says whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.thirdparty.library_runs import QUIET, Fitted, scored

pytest.importorskip("neuralforecast", reason="needs the extra libraries")
pandas = pytest.importorskip("pandas")
pl = pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS: dict[str, Any] = {
    "h": 2,
    "input_size": 4,
    "max_steps": 4,
    "batch_size": 3,
    "windows_batch_size": 6,
    "val_check_steps": 2,
    "random_seed": 1,
}


class WindowLosses:
    """Stands for a loss, and keeps what it is of each window."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)

    def __call__(self, **arguments: Any) -> Tensor:
        counted = arguments["mask"].flatten(1).sum(1)
        one_by_one = [self.loss(**{n: _row(v, i) for n, v in arguments.items()}) for i in range(len(counted))]
        self.losses = torch.stack(one_by_one) * counted / counted.sum()
        return self.loss(**arguments)


def loss_of_each(module: Any, batch: Any, batch_idx: int) -> Tensor:
    """What the windows of every series of the batch add to the loss, shape ``[B]``."""
    create, sample, loss = module._create_windows, module._sample_windows, WindowLosses(module.loss)
    windows: dict[str, Any] = {}

    def note_all(*arguments: Any, **named: Any) -> Any:
        created = create(*arguments, **named)
        windows["all"] = len(created[0])
        return created

    def note_drawn(*arguments: Any, **named: Any) -> Any:
        windows["drawn"] = named["final_condition"][named["w_idxs"]]
        return sample(*arguments, **named)

    module._create_windows, module._sample_windows, module._modules["loss"] = note_all, note_drawn, loss
    try:
        module.training_step(batch, batch_idx)
    finally:
        module._modules["loss"] = loss.loss
        del module._create_windows, module._sample_windows
    series = len(batch["temporal"])
    owner = windows["drawn"] // (windows["all"] // series)  # windows come series by series
    return loss.losses.new_zeros(series).index_add(0, owner, loss.losses) * series


def _row(value: Any, place: int) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_row(v, place) for v in value)
    return value[place : place + 1] if isinstance(value, Tensor) else value


class KeepTrainer(pl.Callback):
    trainer: Any = None

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        type(self).trainer = trainer  # the model copies its callbacks


def fit(make: Any) -> Any:
    from neuralforecast import NeuralForecast

    times, random = np.arange(20), np.random.default_rng(0)
    series = [np.sin(times / 4 + k) + 0.1 * random.normal(size=20) + 2 for k in range(5)]
    table = pandas.concat(
        [pandas.DataFrame({"unique_id": str(k), "ds": times, "y": y}) for k, y in enumerate(series)], ignore_index=True
    )

    def train(callbacks: list[Any]) -> Fitted:
        forecast = NeuralForecast(models=[make({**QUIET, "callbacks": [*callbacks, KeepTrainer()]})], freq=1)
        forecast.fit(table, val_size=3)
        trainer = KeepTrainer.trainer
        return Fitted(module=forecast.models[0], trainer=trainer, datamodule=trainer.datamodule)

    return train


def test_hierarchical_interpolation_with_an_absolute_error(tmp_path: Path) -> None:
    from neuralforecast.losses.pytorch import MAE
    from neuralforecast.models import NHITS

    def make(trainer: dict[str, Any]) -> Any:
        return NHITS(mlp_units=3 * [[4, 4]], n_blocks=[1, 1, 1], loss=MAE(), **SETTINGS, **trainer)

    _, scores = scored(fit(make), tmp_path / "run.tlog", per_example_loss=loss_of_each)
    assert len(scores) == 5


def test_a_recurrent_network_with_a_distribution(tmp_path: Path) -> None:
    from neuralforecast.losses.pytorch import DistributionLoss
    from neuralforecast.models import LSTM

    def make(trainer: dict[str, Any]) -> Any:
        size = {"encoder_hidden_size": 3, "decoder_hidden_size": 3}
        return LSTM(loss=DistributionLoss("Normal"), **size, **SETTINGS, **trainer)

    scored(fit(make), tmp_path / "run.tlog", per_example_loss=loss_of_each)
