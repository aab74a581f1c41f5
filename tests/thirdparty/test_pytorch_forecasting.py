"""Forecasters of pytorch-forecasting, whose losses are computed by hand: ``per_example_loss=``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.thirdparty.library_runs import QUIET, Fitted, scored

pytest.importorskip("pytorch_forecasting", reason="needs the extra libraries")
pandas = pytest.importorskip("pandas")
pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")


def loss_of_each(module: Any, batch: Any, batch_idx: int) -> Tensor:
    """What every series of the batch adds to the loss, shape ``[B]``."""
    x, (target, _) = batch
    lengths = x["decoder_lengths"]
    losses = module.loss.loss(module(x)["prediction"], target)  # [B, T] or [B, T, quantiles]
    return module.loss.mask_losses(losses, lengths, "mean").flatten(1).sum(1) * len(lengths) / lengths.sum()


def fit(make: Any, **columns: Any) -> Any:
    from pytorch_forecasting import TimeSeriesDataSet

    random = np.random.default_rng(0)
    times = np.arange(14)
    series = [np.sin(times / 3 + k) + 0.1 * random.normal(size=14) + 2 for k in range(2)]
    table = pandas.concat(
        [pandas.DataFrame({"g": str(k), "t": times, "y": y}) for k, y in enumerate(series)], ignore_index=True
    )
    columns |= {"time_idx": "t", "target": "y", "group_ids": ["g"], "time_varying_unknown_reals": ["y"]}

    def train(callbacks: list[Any]) -> Fitted:
        sizes = {"max_encoder_length": 4, "min_encoder_length": 4, "max_prediction_length": 2}
        data = TimeSeriesDataSet(table[table.t < 10], **sizes, **columns)
        held_out = TimeSeriesDataSet.from_dataset(data, table[table.t >= 6], stop_randomization=True)
        loader = data.to_dataloader(train=True, batch_size=4, num_workers=0)
        validation = held_out.to_dataloader(train=False, batch_size=4, num_workers=0)
        module = make(data)
        trainer = pl.Trainer(max_epochs=2, gradient_clip_val=0.5, callbacks=callbacks, **QUIET)
        trainer.fit(module, loader, validation)
        return Fitted(module=module, trainer=trainer, train=loader, validation=validation)

    return train


def test_a_temporal_fusion_transformer(tmp_path: Path) -> None:
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.metrics import QuantileLoss

    def make(data: Any) -> Any:
        size = {"hidden_size": 2, "attention_head_size": 1, "hidden_continuous_size": 2, "learning_rate": 1e-2}
        return TemporalFusionTransformer.from_dataset(data, loss=QuantileLoss([0.1, 0.5, 0.9]), log_interval=-1, **size)

    scored(fit(make), tmp_path / "run.tlog", per_example_loss=loss_of_each)


def test_an_autoregressive_network(tmp_path: Path) -> None:
    from pytorch_forecasting import DeepAR
    from pytorch_forecasting.metrics import NormalDistributionLoss

    def make(data: Any) -> Any:
        return DeepAR.from_dataset(data, loss=NormalDistributionLoss(), hidden_size=2, rnn_layers=1, learning_rate=1e-2)

    scored(fit(make, time_varying_known_reals=["t"]), tmp_path / "run.tlog", per_example_loss=loss_of_each)
