"""A small module trained under the recorder, and the same training written out by hand with example weights.

The module is a linear layer with cross-entropy. What a hook does to a step is said twice: by hooks on the module, and
by a formula of epoch, step and batch index, `Formula`, that scales the inputs and adds a square penalty of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder

N, SIZE, EPOCHS, RATE = 12, 4, 3, 0.3
STEPS = N // SIZE


def examples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(x, x[:, :3].argmax(1))


TRAIN, VALIDATION = examples(N, 0), examples(20, 1)


class Net(pl.LightningModule):
    """The module without hooks; ``penalty`` is a number that hooks may change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def loss(self, batch: Any, penalty: Any = 0.0) -> Tensor:
        z = self.net(batch[0])
        return F.cross_entropy(z, batch[1]) + penalty * F.mse_loss(z, torch.zeros_like(z))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TRAIN, batch_size=SIZE)

    def val_dataloader(self) -> Any:
        return DataLoader(VALIDATION, batch_size=8)


Number = Callable[[int, int, int], float]
"""Of epoch, global step and batch index."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """The same training by hand.

    Attributes:
        scale: Of the inputs of a step.
        penalty: Factor of the penalty of a step.
        rate: Learning rate of a step.
        end_scale: Of the inputs of the validation.
        end_penalty: Factor of its penalty.
    """

    scale: Number = lambda e, t, i: 1.0
    penalty: Number = lambda e, t, i: 0.0
    rate: Number = lambda e, t, i: RATE
    end_scale: float = 1.0
    end_penalty: float = 0.0

    def scores(self) -> tuple[float, Tensor]:
        """The query, and minus its derivative in the weight of each example, by autograd through the whole run."""
        weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        w, b = layer.weight.detach().double().requires_grad_(), layer.bias.detach().double().requires_grad_()
        x, y = TRAIN.tensors
        for t in range(EPOCHS * STEPS):
            e, i = divmod(t, STEPS)
            ids = slice(i * SIZE, (i + 1) * SIZE)
            losses = _losses(x[ids] * self.scale(e, t, i), y[ids], w, b, self.penalty(e, t, i))
            gw, gb = torch.autograd.grad((losses * weights[ids]).mean(), (w, b), create_graph=True)
            w, b = w - self.rate(e, t, i) * gw, b - self.rate(e, t, i) * gb
        vx, vy = VALIDATION.tensors
        query = _losses(vx * self.end_scale, vy, w, b, self.end_penalty).mean()
        return float(query.detach()), -torch.autograd.grad(query, weights)[0]


def _losses(x: Tensor, y: Tensor, w: Tensor, b: Tensor, penalty: float) -> Tensor:
    z = x @ w.T + b
    return z.exp().sum(1).log() - z[torch.arange(len(y)), y] + penalty * z.square().mean(1)


@dataclass(kw_only=True)
class Trained:
    """A module trained under the recorder.

    Attributes:
        module: Trained.
        data: The data module it was trained with.
        path: Of the log.
        logged: What Lightning had logged at the end.
    """

    module: Net
    data: Any
    path: Path
    logged: dict[str, float] = field(default_factory=dict)

    def scores(self, module: Any = None, data: Any = None, *, certificate: Any = "off", **more: Any) -> Scores:
        query = more.pop("query", None)
        runner = InfluenceRunner(accelerator="cpu", certificate=certificate, progress=False, **more)
        return runner.run(
            self.module if module is None else module, datamodule=data or self.data, log=self.path, query=query
        )


def train(path: Path, module: Net, data: Any = None, *, recorder: Any = None, **settings: Any) -> Trained:
    """Train a module for `EPOCHS` epochs."""
    recorder = recorder or TrajectoryRecorder(path / "run.tlog")
    callbacks = [*settings.pop("callbacks", []), recorder]
    trainer = pl.Trainer(
        **{
            "max_epochs": EPOCHS,
            "precision": "64-true",
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        },
        callbacks=callbacks,
    )
    data = data or Data()
    trainer.fit(module, datamodule=data)
    logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return Trained(module=module, data=data, path=recorder.path, logged=logged)


def expect(scores: Scores, formula: Formula, tolerance: float = 1e-9) -> None:
    """Compare scores and query with those by hand."""
    query, values = formula.scores()
    assert abs(scores.provenance["query_values"][0] - query) <= tolerance * abs(query)
    assert float((scores.values[:, 0] - values).abs().max()) <= tolerance * float(values.abs().max())
