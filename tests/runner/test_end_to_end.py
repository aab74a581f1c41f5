"""Trainer, recorder, log and runner together, against training again: through the replayer, and in a plain loop.

The plain loop knows nothing of the record: it trains on what the module itself saw, noted by its own ``training_step``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, WeightAveraging
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, Scores, TrajectoryRecorder
from lightning_sgdinf.log import state_checksum
from lightning_sgdinf.query import MeanLoss
from lightning_sgdinf.testing import central_differences, relative_error
from lightning_sgdinf.zoo import Classifier, Digits

N, SIZE, EPOCHS, TOGETHER, CLIP, DECAY = 14, 3, 3, 2, 0.4, 0.93
EMA = 0.6


class Augmented(Dataset):
    """Noise from torch's and numpy's global generators; examples know their index."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(N, 5, generator=generator)
        self.y = torch.randint(0, 3, (N,), generator=generator)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.x[i] + 0.1 * torch.randn(5) + 0.1 * float(np.random.rand()), self.y[i], i


@dataclass(frozen=True)
class Seen:
    """The arguments of one ``training_step``."""

    x: Tensor
    y: Tensor
    ids: Tensor
    random: Tensor


class Net(pl.LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3))
        self.journal: list[Seen] | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, ids = batch
        if self.journal is not None:
            self.journal.append(Seen(x.clone(), y.clone(), ids.clone(), torch.get_rng_state()))
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: DECAY**t)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(module: Net) -> torch.optim.Optimizer:
    if module.kind == "sgd":
        return torch.optim.SGD(module.net.parameters(), 0.3, momentum=0.8, nesterov=True, weight_decay=0.01)
    return torch.optim.AdamW(module.net.parameters(), 0.05, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1)


class MovingAverage(WeightAveraging):
    def __init__(self) -> None:
        super().__init__(avg_fn=get_ema_avg_fn(EMA), use_buffers=True)


class Fitted:
    """A recorded fit, and the same training as a plain loop."""

    def __init__(
        self, folder: Path, kind: str, *, keep: str = "every_step", callbacks: tuple[Callback, ...] = ()
    ) -> None:
        pl.seed_everything(5, verbose=False)
        # Not left to the Trainer: the averaging callback copies the model before it is made float64, and would round.
        self.model = Net(kind).double()
        self.averaged = bool(callbacks)
        self.before = copy.deepcopy(self.model)
        self.train = DataLoader(Augmented(), batch_size=SIZE, shuffle=True)
        generator = torch.Generator().manual_seed(4)
        self.validation = TensorDataset(
            torch.randn(12, 5, generator=generator), torch.randint(0, 3, (12,), generator=generator)
        )
        self.path = folder / f"{kind}.tlog"
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accumulate_grad_batches=TOGETHER,
            gradient_clip_val=CLIP,
            precision="64-true",
            accelerator="cpu",
            callbacks=[TrajectoryRecorder(self.path, keep=keep), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.model.journal = []
        trainer.fit(self.model, self.train, DataLoader(self.validation, batch_size=5))
        self.journal, self.model.journal = self.model.journal, None

    def scores(self, **more: Any) -> Scores:
        runner = InfluenceRunner(accelerator="cpu", progress=False, **more)
        return runner.run(self.model, self.train, DataLoader(self.validation, batch_size=5), log=self.path)

    def query(self, net: nn.Module) -> Tensor:
        x, y = self.validation.tensors
        with torch.no_grad():
            return F.cross_entropy(net.eval()(x.double()), y)

    def plain(self, weights: Tensor) -> Tensor:
        """Trains with example weights; returns the query at the end."""
        module = copy.deepcopy(self.before)
        optimizer = make_optimizer(module)
        average: dict[str, Tensor] = {}
        per_epoch = len(self.journal) // EPOCHS
        t = 0
        with torch.random.fork_rng():
            for epoch in range(EPOCHS):
                passes = self.journal[epoch * per_epoch : (epoch + 1) * per_epoch]
                for group in (passes[i : i + TOGETHER] for i in range(0, per_epoch, TOGETHER)):
                    optimizer.param_groups[0]["lr"] = (0.3 if module.kind == "sgd" else 0.05) * DECAY**t
                    optimizer.zero_grad()
                    for seen in group:
                        torch.set_rng_state(seen.random)
                        each = F.cross_entropy(module.net.train()(seen.x), seen.y, reduction="none")
                        ((weights[seen.ids] * each).sum() / len(each) / TOGETHER).backward()
                    nn.utils.clip_grad_norm_(module.net.parameters(), CLIP)
                    optimizer.step()
                    t += 1
                    now = {n: v.clone() for n, v in module.net.state_dict().items() if v.is_floating_point()}
                    average = {n: EMA * average[n] + (1 - EMA) * v for n, v in now.items()} if average else now
        if self.averaged:
            module.net.load_state_dict({**module.net.state_dict(), **average})
        return self.query(module.net)[None]

    def replayed(self, weights: Tensor) -> Tensor:
        """The same through the record."""
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        with runner.replayer(self.model, self.train, log=self.path) as again:
            end = again.run(again.log.state(0), 0, len(again.log), weights=weights)
        net = copy.deepcopy(self.before).net
        net.load_state_dict({n.removeprefix("net."): v for n, v in {**end.params, **end.buffers}.items()})
        return self.query(net)[None]


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return Fitted(tmp_path_factory.mktemp("run"), request.param)


def test_the_plain_loop_is_the_fit(fitted: Fitted) -> None:
    ones = torch.ones(N, dtype=torch.float64)
    trained = fitted.query(copy.deepcopy(fitted.model).net)
    assert torch.allclose(fitted.plain(ones), trained, rtol=1e-12)
    assert torch.allclose(fitted.replayed(ones), trained, rtol=1e-12)
    assert len(fitted.journal) == 5 * EPOCHS


def test_scores_are_what_training_again_gives(fitted: Fitted) -> None:
    scores = fitted.scores(certificate="full")
    assert scores.values.shape == (N, 1)
    assert scores.values.abs().max() > 1e-3, "the test is degenerate"
    for train_again, ids in ((fitted.plain, range(0, N, 3)), (fitted.replayed, (0, 7))):
        again = central_differences(train_again, N, ids=ids)
        assert relative_error(scores.values[list(ids)], again) < 1e-6
    checked = scores.certificate
    assert checked is not None
    assert checked.gradient_check is not None
    assert checked.gradient_check.relative_error < 1e-6
    assert checked.step_replay is not None
    assert checked.step_replay.steps == 3 * EPOCHS
    assert checked.step_replay.largest_deviation < 1e-6


def test_the_record_is_retraced_bit_for_bit(fitted: Fitted) -> None:
    with (
        RunLog.open(fitted.path) as log,
        InfluenceRunner(accelerator="cpu", progress=False).replayer(fitted.model, fitted.train, log=log) as again,
    ):
        state = log.state(0)
        for step in log.steps(0, len(log)):
            state = again.advance(state, step)
            assert state_checksum(state) == log.state_checksum(step.index + 1), step.index


def test_fewer_states_give_the_same_scores(fitted: Fitted, tmp_path: Path) -> None:
    sparse = Fitted(tmp_path, fitted.model.kind, keep="every(4)")
    assert torch.equal(sparse.scores(certificate="fast").values, fitted.scores(certificate="off").values)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_averaged_weights_and_statistics(kind: str, tmp_path: Path) -> None:
    run = Fitted(tmp_path, kind, callbacks=(MovingAverage(),))
    ones = torch.ones(N, dtype=torch.float64)
    assert torch.allclose(run.plain(ones), run.query(copy.deepcopy(run.model).net), rtol=1e-12)
    scores = run.scores(certificate="fast")
    ids = [1, 4, 8, 12]
    assert relative_error(scores.values[ids], central_differences(run.plain, N, ids=ids)) < 1e-6
    assert scores.provenance["query_values"] == pytest.approx([float(run.plain(ones))], rel=1e-12)


@pytest.mark.slow
def test_float32_ranks_as_float64_does(tmp_path: Path) -> None:
    """On 300 handwritten digits: what a walk in float32 loses does not show in the order."""
    pl.seed_everything(0, verbose=False)
    images, _ = Digits().read()
    train = TensorDataset(images.images[:300], images.labels[:300])
    validation = DataLoader(TensorDataset(images.images[300:500], images.labels[300:500]), batch_size=200)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    model = Classifier(network, classes=10, optimizer=lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.5))
    path = tmp_path / "digits.tlog"
    trainer = pl.Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(path)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(train, batch_size=20, shuffle=True)
    trainer.fit(model, loader, validation)
    values = []
    for precision in (None, "64-true"):
        runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, precision=precision)
        values.append(runner.run(model, loader, validation, log=path, query=MeanLoss()).values[:, 0])
    assert kendalltau(*values).statistic >= 0.999
    assert not torch.equal(*values), "the test is degenerate"
