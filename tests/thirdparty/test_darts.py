"""Forecasters of darts, through ``TorchForecastingModel.fit`` with ``pl_trainer_kwargs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sgdinf.testing import central_differences, relative_error
from tests.thirdparty.library_runs import QUIET, Fitted, scored, start_and_batches

pytest.importorskip("darts", reason="needs the extra libraries")
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS: dict[str, Any] = {"input_chunk_length": 6, "n_epochs": 2, "batch_size": 8, "random_state": 0}


def series(dtype: Any) -> Any:
    from darts import TimeSeries

    values = np.sin(np.arange(40) / 4) + 0.1 * np.random.default_rng(0).normal(size=40)
    return TimeSeries.from_values(values.astype(dtype))


def fit(make: Any, dtype: Any = np.float32, **trainer: Any) -> Any:
    def train(callbacks: list[Any]) -> Fitted:
        model, whole = make({**QUIET, **trainer, "callbacks": callbacks}), series(dtype)
        model.fit(whole[:28], val_series=whole[20:], verbose=False)
        trainer_ = model.trainer
        loaders = (trainer_.train_dataloader, trainer_.val_dataloaders)
        return Fitted(module=model.model, trainer=trainer_, train=loaders[0], validation=loaders[1])

    return train


def nbeats(trainer: dict[str, Any]) -> Any:
    from darts.models import NBEATSModel

    shape = {"num_stacks": 2, "num_blocks": 1, "num_layers": 1, "layer_widths": 4}
    return NBEATSModel(output_chunk_length=2, pl_trainer_kwargs=trainer, **shape, **SETTINGS)


def test_nbeats_is_that_of_a_loop_by_hand(tmp_path: Path) -> None:
    log = tmp_path / "run.tlog"
    fitted, scores = scored(fit(nbeats, np.float64, precision="64-true"), log)
    start, batches = start_and_batches(log)
    train, validation = fitted.train.dataset, fitted.validation.dataset
    assert len(scores) == len(train) == 21

    def pairs(dataset: Any, ids: Any) -> tuple[Tensor, Tensor]:
        items = [dataset[i] for i in ids]
        past, future = ([torch.as_tensor(getattr(item, n)) for item in items] for n in ("past_target", "future_target"))
        return torch.stack(past), torch.stack(future)

    def errors(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        residual, forecast = x[..., 0], 0.0
        for stack in range(2):
            of = f"stacks.{stack}.blocks.0"
            hidden = (residual @ p[f"{of}.fc_stack.0.weight"].T + p[f"{of}.fc_stack.0.bias"]).relu()
            for end in ("backcast", "forecast"):
                theta = hidden @ p[f"{of}.{end}_linear_layer.weight"].T + p[f"{of}.{end}_linear_layer.bias"]
                basis = f"{of}.{end}_g"
                value = theta @ p[f"{basis}.weight"].T + p[f"{basis}.bias"] if f"{basis}.weight" in p else theta
                if end == "backcast" and stack == 0:
                    residual = residual - value
                elif end == "forecast":
                    forecast = forecast + value
        return (forecast - y[..., 0]).square().mean(1)

    def query_after(weights: Tensor) -> Tensor:
        p = {n: v.clone().requires_grad_() for n, v in start.items()}
        optimizer = torch.optim.Adam(list(p.values()), lr=1e-3)
        for ids in batches:
            optimizer.zero_grad()
            (weights[ids] * errors(p, *pairs(train, ids))).mean().backward()
            optimizer.step()
        return errors(p, *pairs(validation, range(len(validation)))).mean()

    ids = [0, 7, 20]
    assert relative_error(scores.values[ids], central_differences(query_after, 21, ids=ids)) < 1e-6


def test_a_recurrent_network_with_a_likelihood(tmp_path: Path) -> None:
    from darts.models import RNNModel
    from darts.utils.likelihood_models import GaussianLikelihood

    def make(trainer: dict[str, Any]) -> Any:
        shape = {"model": "LSTM", "hidden_dim": 3, "training_length": 8}
        return RNNModel(likelihood=GaussianLikelihood(), pl_trainer_kwargs=trainer, **shape, **SETTINGS)

    scored(fit(make), tmp_path / "run.tlog")


def loss_of_each(module: Any, batch: Any, batch_idx: int) -> Tensor:
    """The quantile loss of every window, shape ``[B]``."""
    from darts.models.forecasting.pl_forecasting_module import ModuleStage

    output = module(batch.to_module_input(stage=ModuleStage.TRAIN)).prediction
    quantiles = torch.tensor(module.likelihood.quantiles, dtype=output.dtype)
    error = batch.future_target.unsqueeze(-1) - output
    return torch.maximum((quantiles - 1) * error, quantiles * error).sum(-1).flatten(1).mean(1)


def test_a_quantile_loss_by_hand(tmp_path: Path) -> None:
    from darts.models import NLinearModel
    from darts.utils.likelihood_models import QuantileRegression

    def make(trainer: dict[str, Any]) -> Any:
        likelihood = QuantileRegression([0.1, 0.5, 0.9])
        options = {"output_chunk_length": 2, "normalize": False, "likelihood": likelihood}
        return NLinearModel(pl_trainer_kwargs=trainer, **options, **SETTINGS)

    scored(fit(make), tmp_path / "run.tlog", per_example_loss=loss_of_each)
