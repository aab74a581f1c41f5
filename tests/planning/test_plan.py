"""Plans of runs, compared with the runs: their logs, their replays, and what planning must leave alone."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.log.command import main
from lightning_sgdinf.log.expected_size import LogCosts
from lightning_sgdinf.planning import plan_run
from lightning_sgdinf.record import Keep
from lightning_sgdinf.record.plan import RunCosts, RunPlan, make_run_plan

EXAMPLES, BATCH, EPOCHS = 40, 5, 3
PER_EPOCH = EXAMPLES // BATCH
STEPS = PER_EPOCH * EPOCHS


class Net(pl.LightningModule):
    """With buffers, momentum, dropout, a loader's generator: all that must stay as it is."""

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 96), nn.BatchNorm1d(96), nn.Tanh(), nn.Dropout(0.1), nn.Linear(96, 3))
        self.momentum = momentum

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=self.momentum)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(EXAMPLES, 4, generator=generator), torch.randint(3, (EXAMPLES,), generator=generator)
    data = TensorDataset(x, y)
    order = torch.Generator().manual_seed(2)
    return DataLoader(data, BATCH, shuffle=True, generator=order), DataLoader(TensorDataset(x[:8], y[:8]), 4)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loaders()[0]

    def val_dataloader(self) -> DataLoader[Any]:
        return loaders()[1]


class Iterable(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from [(torch.zeros(4), torch.tensor(0))] * 20


def fit(module: Net, train: Any, path: Path | None = None, keep: str | Keep = "every_step") -> None:
    pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[] if path is None else [TrajectoryRecorder(path, keep=keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(module, train, loaders()[1])


class Odd:
    """A policy of somebody's own: states at growing distances."""

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        return index in (0, 1, 3, 7, 15)

    def __str__(self) -> str:
        return "odd"


KEEPS: tuple[str | Keep, ...] = ("every_step", "every(7)", "last_epochs(2)", "final", Odd())


@pytest.fixture(scope="module")
def plan() -> RunPlan:
    train, validation = loaders()
    return plan_run(Net(), train, validation, steps=STEPS, keeps=KEEPS, trainer={"accelerator": "cpu"})


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_bytes_and_states_are_those_of_the_real_log(keep: str | Keep, plan: RunPlan, tmp_path: Path) -> None:
    fit(Net(), loaders()[0], tmp_path / "run", keep)
    with RunLog.open(tmp_path / "run") as log:
        assert plan[str(keep)].states == len(log.state_indices) - 1
        assert plan[str(keep)].log_bytes == pytest.approx(log.size_bytes, rel=0.25)
        assert plan.costs.state_bytes == log.state(len(log)).nbytes
    assert plan.costs.steps_per_epoch == PER_EPOCH


@pytest.mark.parametrize(("keep", "memory"), [("every(7)", 1 << 30), ("every(7)", 1), (Odd(), 1 << 30)], ids=str)
def test_steps_taken_again_are_those_of_the_real_replay(
    keep: str | Keep, memory: int, plan: RunPlan, tmp_path: Path
) -> None:
    train, validation = loaders()
    fit(Net(), train, tmp_path / "run", keep)
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, memory_bytes=memory)
    scores = runner.run(Net(), train, validation, log=tmp_path / "run")
    assert scores.certificate is not None
    rebuilt = next(m for note in scores.certificate.notes if (m := re.match(r"(\d+) states were rebuilt", note)))
    policy = make_run_plan(plan.costs, steps=STEPS, keeps=[keep], memory_bytes=memory)[str(keep)]
    assert policy.rebuilt == int(rebuilt[1])
    assert policy.replay_steps == STEPS


def test_planning_changes_nothing(tmp_path: Path) -> None:
    """Training after planning is, bit for bit, training without it."""
    plain, (train, _) = Net(), loaders()
    pl.seed_everything(3, verbose=False)
    fit(plain, train)
    planned, (train, validation) = Net(), loaders()
    pl.seed_everything(3, verbose=False)
    TrajectoryRecorder(tmp_path / "run").plan(planned, train, validation, steps=5, trainer={"accelerator": "cpu"})
    drawn = torch.rand(1), np.random.rand(), random.random()
    fresh = copy.deepcopy(planned.state_dict())
    assert not (tmp_path / "run").exists()
    assert planned.__dict__.get("_trainer") is None
    assert planned.training
    pl.seed_everything(3, verbose=False)
    assert drawn == (torch.rand(1), np.random.rand(), random.random())
    assert all(torch.equal(value, fresh[name]) for name, value in Net().state_dict().items())
    pl.seed_everything(3, verbose=False)
    fit(planned, train)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in planned.state_dict().items())


def test_a_trained_model_and_its_data_module_stay_with_their_trainer() -> None:
    module, data = Net(), Data()
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    trainer.fit(module, datamodule=data)
    plan = plan_run(module, datamodule=data, steps=8, trainer={"accelerator": "cpu"})
    assert plan.costs.step_seconds is not None
    assert module.trainer is trainer
    assert data.trainer is trainer


def test_seconds_and_memory_are_those_of_the_formulas() -> None:
    costs = RunCosts(
        parameters=1,
        state_bytes=1000,
        log=LogCosts(codec="none", order=0, plain=1000, step=10),
        steps_per_epoch=50,
        step_seconds=2.0,
        back_seconds=3.0,
        forward_seconds=1.0,
        once_seconds=7.0,
        walk_bytes=5000,
    )
    plan = make_run_plan(costs, steps=200, keeps=["every_step", "every(10)", "last_epochs(2)", "final"])
    assert plan.training_seconds == 400
    every, tenth, last, final = plan.policies
    assert (every.log_bytes, every.write_rate) == (203_000, 203_000 / 400)
    assert (every.replay_seconds, every.replay_bytes) == (7 + 200 * 3, 5000)
    assert (tenth.states, tenth.rebuilt, tenth.replay_seconds) == (20, 180, 7 + 600 + 180)
    assert tenth.replay_bytes == 5000 + 10 * 1000
    assert (last.states, last.replay_steps, last.replay_seconds) == (101, 100, 307)
    assert (final.log_bytes, final.replay_seconds, final.replay_bytes) == (3000, None, None)
    budget = make_run_plan(costs, steps=200, keeps=["budget:400kB"]).policies[0]
    assert budget.keep.startswith("budget:400kB -> every(")
    assert 3000 < budget.log_bytes < 400_000
    unknown = make_run_plan(RunCosts(parameters=1, state_bytes=1, log=costs.log), steps=9, keeps=["last_epochs(1)"])
    assert unknown.policies == ()


def test_without_data_bytes_alone_are_forecast() -> None:
    """The state is the real one's, optimizer included; seconds and memory are unknown, and shown so."""
    module = Net()
    plan = plan_run(module, steps=100)
    parameters = sum(p.numel() for p in module.parameters())
    assert plan.costs.parameters == parameters
    assert plan.costs.state_bytes == 2 * 4 * parameters + 2 * 4 * 96 + 8  # momentum, running statistics, a counter
    assert plan["every_step"].replay_seconds is None
    assert "?" in str(plan)
    assert "without compression" in str(plan)
    assert all(p.grad is None for p in module.parameters())
    assert "last_epochs(1)" not in [p.keep for p in plan.policies]


def test_an_optimizer_that_asks_the_trainer_is_left_out_and_said() -> None:
    class Asking(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1 / self.trainer.estimated_stepping_batches)

    plan = plan_run(Asking(), steps=10)
    assert any("Without what the optimizer keeps" in line for line in plan.costs.measured_on)


def test_a_run_that_cannot_be_recorded_is_refused_before_it_is_trained() -> None:
    with pytest.raises(UnsupportedRunError, match="IterableDataset"):
        plan_run(Net(), DataLoader(Iterable(), BATCH), steps=10, trainer={"accelerator": "cpu"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number of at least 1"),
        ({"steps": 9, "timed_steps": 2}, "timed_steps: expected at least 4"),
        ({"steps": 9, "keeps": ["sometimes"]}, "unknown keep='sometimes'"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        plan_run(Net(), *loaders(), **arguments, trainer={"accelerator": "cpu"})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = "tests.planning.test_plan"
    assert main(["plan", f"{here}:Net", "--steps", "100", "--keep", "every(3)", "--timed-steps", "0"]) == 0
    text = capsys.readouterr().out
    assert "every(3)" in text
    assert "every_step" in text
    assert main(["plan", f"{here}:Nothing", "--steps", "100"]) == 1
    assert "Expected package.module:name" in capsys.readouterr().err
    fit(Net(), loaders()[0], tmp_path / "run")
    assert main(["plan", str(tmp_path / "run"), "--steps", "1000", "--codec", "small"]) == 0
    text = capsys.readouterr().out
    assert "codec 'small' on states up to number 24" in text
    assert "last_epochs(1)" in text
    with RunLog.open(tmp_path / "run") as log:
        assert f"{sum(np.prod(s, dtype=int) for _, s, _ in log.header.parameters):,} trained numbers" in text
