"""Estimators of gluonts, whose training data are a stream: the batches are kept in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.thirdparty.library_runs import QUIET, Fitted, scored

pytest.importorskip("gluonts", reason="needs the extra libraries")
pl = pytest.importorskip("lightning.pytorch")
pytest.importorskip("gluonts.torch")
pytestmark = pytest.mark.filterwarnings("ignore")


def loss_of_each(module: Any, batch: Any, batch_idx: int) -> Tensor:
    """The loss of every window of the batch, shape ``[B]``."""
    from gluonts.itertools import select

    future = {name: batch[name] for name in ("future_target", "future_observed_values")}
    losses = module.model.loss(**select(module.inputs, batch), **future)
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


class Keep(pl.Callback):
    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.trainer, self.module = trainer, module


@pytest.mark.parametrize("name", ["SimpleFeedForwardEstimator", "DeepAREstimator"])
def test_windows_of_series(tmp_path: Path, name: str) -> None:
    import gluonts.torch
    from gluonts.dataset.common import ListDataset

    random = np.random.default_rng(0)
    series = [np.sin(np.arange(30) / 4 + k) + 0.1 * random.normal(size=30) + 2 for k in range(3)]
    data = ListDataset([{"start": "2020-01-01", "target": one} for one in series], freq="D")
    shape: dict[str, Any] = {"hidden_dimensions": [4]}
    if name == "DeepAREstimator":
        shape = {"freq": "D", "num_layers": 1, "hidden_size": 2, "lags_seq": [1, 2]}

    def fit(callbacks: list[Any]) -> Fitted:
        keep = Keep()
        trainer = {k: v for k, v in QUIET.items() if k != "enable_checkpointing"}
        trainer |= {"default_root_dir": str(tmp_path), "max_epochs": 2, "callbacks": [*callbacks, keep]}
        estimator = getattr(gluonts.torch, name)(
            prediction_length=2,
            context_length=4,
            num_batches_per_epoch=2,
            batch_size=4,
            trainer_kwargs=trainer,
            **shape,
        )
        estimator.train(data, validation_data=data)
        validation = keep.trainer.val_dataloaders
        return Fitted(module=keep.module, trainer=keep.trainer, validation=validation)

    stored = {"store_batches": True}
    _, scores = scored(fit, tmp_path / "run.tlog", recorder=stored, per_example_loss=loss_of_each)
    assert len(scores) == 16
