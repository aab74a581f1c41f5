"""States rebuilt but for rounding: how far they drift, that it is bounded, and what it does to the scores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder
from lightning_sgdinf.errors import CertificateError, ConfigurationError, StepMismatchError
from lightning_sgdinf.estimators import AccumulatedInfluence
from lightning_sgdinf.log import Step
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.replay import Replayer
from lightning_sgdinf.replay.rebuilding import chosen_rebuild
from lightning_sgdinf.scoring import rebuilding_checks
from lightning_sgdinf.state import ModelState
from tests.adjoint.cases import BY_NAME, Recorded, record, thinned

K = 4


class Elsewhere:
    """A machine that rounds otherwise: every step taken again ends a little aside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: float) -> None:
        self.states: dict[int, ModelState] = {}
        self._generator = torch.Generator().manual_seed(0)
        here = Replayer.advance

        def advance(replayer: Replayer, state: ModelState, step: Step, **more: Any) -> ModelState:
            after = here(replayer, state, step, **more)
            params = {
                n: v * (1 + size * torch.randn(v.shape, generator=self._generator).to(v)) if v.ndim else v
                for n, v in after.params.items()
            }
            self.states[step.index + 1] = replace(after, params=params)
            return self.states[step.index + 1]

        monkeypatch.setattr(Replayer, "advance", advance)


def score(run: Recorded, log: MemoryLog, certificate: Any = "fast", estimator: Any = None, **more: Any) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", certificate=certificate, progress=False, **more)
    return runner.run(run.module, run.train, run.validation, log=log, estimator=estimator)


def apart(values: Tensor, exact: Tensor) -> float:
    return float((values - exact).abs().max() / exact.abs().max())


def check_named(scores: Scores, name: str) -> Any:
    return next(check for check in scores.certificate.checks if check.name == name)


def square(states: Any) -> float:
    return sum(float((v.double() ** 2).sum()) for v in states)


def drift_by_hand(log: MemoryLog, rebuilt: dict[int, ModelState]) -> float:
    """The largest over stretches and parts of a state, written out."""
    worst = 0.0
    ends = [*log.state_indices.tolist()]
    for a, b in pairwise(ends):
        if b - a < 2:
            continue
        before, after, other = log.state(a), log.state(b), rebuilt[b]
        gaps = square(other.params[n] - v for n, v in after.params.items())
        worst = max(worst, (gaps / square(v - before.params[n] for n, v in after.params.items())) ** 0.5)
        momentum = [(other.optimizer[n], v, before.optimizer.get(n)) for n, v in after.optimizer.items()]
        moved = square(v["momentum_buffer"] - (w["momentum_buffer"] if w else 0) for _, v, w in momentum)
        gaps = square(o["momentum_buffer"] - v["momentum_buffer"] for o, v, _ in momentum)
        worst = max(worst, (gaps / moved) ** 0.5)
    return worst


@pytest.fixture
def run() -> Recorded:
    return record(BY_NAME["momentum"])


@pytest.mark.parametrize("name", ["momentum", "adamw", "batchnorm"])
def test_where_bits_are_the_same_close_is_exact(name: str) -> None:
    run = record(BY_NAME[name])
    sparse = thinned(run.log, range(0, len(run.log), K))
    exact, close = score(run, sparse, rebuild="exact"), score(run, sparse, rebuild="close")
    assert torch.equal(close.values, exact.values)
    check = check_named(close, "close rebuilding")
    assert check.outcome == "equal"
    assert "effect of close rebuilding" not in [c.name for c in close.certificate.checks]
    assert "close rebuilding" not in [c.name for c in exact.certificate.checks]


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_drift_and_its_effect_are_measured(memory: int, run: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the drift written out, and scores from all states: the effect is of the size of the true one."""
    exact = score(run, run.log, "off").values
    sparse = thinned(run.log, range(0, len(run.log), K))
    machine = Elsewhere(monkeypatch, 1e-8)
    scores = score(run, sparse, rebuild="close", memory_bytes=memory)
    check = check_named(scores, "close rebuilding")
    if memory > 1:  # otherwise a state is rebuilt several times, each time rounded otherwise
        assert check.deviation == pytest.approx(drift_by_hand(sparse, machine.states), rel=1e-6)
    error, effect = apart(scores.values, exact), check_named(scores, "effect of close rebuilding")
    assert 0 < error < 1e-3
    assert error / 30 < effect.deviation < error * 30
    assert effect.outcome != "failed"
    assert any("rebuild='close'" in note for note in scores.certificate.notes)
    assert check_named(scores, "step replay").outcome in ("equal", "rounding", "near")


def test_too_much_drift_is_an_error_with_the_number(run: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = thinned(run.log, range(0, len(run.log), K))
    Elsewhere(monkeypatch, 0.05)
    with pytest.raises(StepMismatchError, match=r"lead \d\.\de[-+]\d\d of what they moved away.*smaller k"):
        score(run, sparse, "off", rebuild="close")
    with pytest.raises(StepMismatchError, match=r"away from stored state"):
        score(run, sparse, "off", rebuild="close", estimator=AccumulatedInfluence())


def test_accumulated_influence_rebuilds_closely(run: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = score(run, run.log, "off", AccumulatedInfluence()).values
    sparse = thinned(run.log, range(0, len(run.log), K))
    Elsewhere(monkeypatch, 1e-8)
    with pytest.raises(StepMismatchError, match=r"differs from the recorded one"):
        score(run, sparse, "off", AccumulatedInfluence(), rebuild="exact")
    assert 0 < apart(score(run, sparse, "off", AccumulatedInfluence(), rebuild="close").values, exact) < 1e-3


def test_too_much_effect_is_an_error_with_the_number(run: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    Elsewhere(monkeypatch, 1e-8)
    monkeypatch.setattr(rebuilding_checks, "SCORES", 1e-15)
    with pytest.raises(CertificateError, match=r"scores differ by \d\.\de-\d\d of the largest.*amplifies"):
        score(run, thinned(run.log, range(0, len(run.log), K)), rebuild="close")


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({}, "exact"),
        ({"threads": torch.get_num_threads(), "torch": torch.__version__}, "exact"),
        ({"threads": 97}, "close"),
        ({"cpu_capability": "NEON"}, "close"),
        ({"torch": "1.13"}, "close"),
        ({"device": "cuda:0"}, "close"),
        ({"device": "cpu", "deterministic_algorithms": False}, "exact"),
    ],
    ids=str,
)
def test_the_default_is_what_the_header_says_of_the_machine(
    recorded: dict[str, Any], expected: str, run: Recorded
) -> None:
    log = thinned(run.log, [0])
    log.header = replace(log.header, environment=recorded)
    device = torch.device("cpu")
    assert chosen_rebuild("auto", log, device) == expected
    assert chosen_rebuild("exact", log, device) == "exact"
    assert chosen_rebuild("close", log, device) == "close"
    log.header = replace(log.header, environment=recorded, extra={"world_size": 4})
    assert chosen_rebuild("auto", log, device) == "close"


def test_a_word_that_is_no_way_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="rebuild: expected 'auto', 'exact' or 'close', got 'near'"):
        InfluenceRunner(rebuild="near")  # type: ignore[arg-type]


# Machines that really round otherwise ------------------------------------------------------------------------------


class Net(pl.LightningModule):
    """Convolutions large enough for threads to share out their sums."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 64, 4)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = np.random.default_rng(1)  # torch's normal numbers depend on the instruction set, too
    x = torch.from_numpy(generator.standard_normal((64, 3, 16, 16), dtype=np.float32))
    y = torch.from_numpy(generator.integers(0, 4, 64))
    return DataLoader(TensorDataset(x, y), 16), DataLoader(TensorDataset(x[:16] + 0.1, y[:16]), 16)


def train(folder: Path) -> None:
    """Record the same run twice, on one thread: with every state, and with every sixth."""
    torch.set_num_threads(1)
    for keep in ("every_step", "every(6)"):
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=[TrajectoryRecorder(folder / keep, keep=keep)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(Net(), *loaders())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Logs of a machine without vector instructions."""
    folder = tmp_path_factory.mktemp("elsewhere")
    script = (
        "import sys, warnings; from pathlib import Path; warnings.simplefilter('ignore')\n"
        "from tests.runner.test_rebuilding import train; train(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment, cwd=repository)
    return folder


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def walked(folder: Path, keep: str, module: nn.Module | None = None, **more: Any) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", progress=False, **more)
    return runner.run(module or Net(), *loaders(), log=folder / keep)


@pytest.mark.usefixtures("threads")
def test_other_instructions_threads_and_order_of_channels(elsewhere: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no vector instructions to leave out")
    torch.set_num_threads(1)
    exact = walked(elsewhere, "every_step", certificate="off").values
    with pytest.raises(StepMismatchError, match="instruction set DEFAULT"):
        walked(elsewhere, "every(6)", rebuild="exact", certificate="off")
    scores = walked(elsewhere, "every(6)")
    assert 0 < apart(scores.values, exact) < 1e-3
    assert check_named(scores, "close rebuilding").outcome == "rounding"
    torch.set_num_threads(2)
    turned = Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in (Net(), turned):
        others = walked(elsewhere, "every(6)", module, certificate="off").values
        assert 0 < apart(others, exact) < 1e-3
