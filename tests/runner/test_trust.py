"""Trust: what it measures is what training by hand gives, and it says how much of the run that was."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.certificate import Trust
from lightning_sgdinf.checks import Allowance, Reached, check_trust, fast_allowance, full_allowance
from lightning_sgdinf.estimators import LastEpochs
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.query import MeanLoss
from lightning_sgdinf.truth import Pace, Removals, first_drawn

EXAMPLES, BATCH, EPOCHS = 12, 4, 3
STEPS = EPOCHS * EXAMPLES // BATCH


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


@dataclass(frozen=True)
class Fitted:
    """A recorded run."""

    before: Net
    train: DataLoader[Any]
    validation: DataLoader[Any]
    log: Path

    def trust(self, **settings: Any) -> Trust:
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate=settings.pop("level", "full"))
        found = runner.run(self.before, self.train, self.validation, log=self.log, **settings).certificate
        assert found is not None
        assert found.trust is not None
        return found.trust

    def by_hand(self, without: int | None, first_step: int = 0) -> float:
        """Train in a plain loop, on the recorded order, and compute the loss; the divisor stays the batch's."""
        net = copy.deepcopy(self.before).layers
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        x, y = self.train.dataset.tensors  # type: ignore[attr-defined]
        with RunLog.open(self.log) as log:
            for step in log.steps(0, len(log)):
                ids = list(step.example_ids)
                if step.index >= first_step:
                    kept = torch.tensor([i != without for i in ids])
                else:
                    kept = torch.ones(len(ids), dtype=torch.bool)
                loss = F.cross_entropy(net(x[ids])[kept], y[ids][kept], reduction="sum") / len(ids)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        held_x, held_y = self.validation.dataset.tensors  # type: ignore[attr-defined]
        return float(F.cross_entropy(net(held_x), held_y).detach())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES + 20, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    y[:3] = 1 - y[:3]
    train = DataLoader(TensorDataset(x[:EXAMPLES], y[:EXAMPLES]), batch_size=BATCH, shuffle=True)
    validation = DataLoader(TensorDataset(x[EXAMPLES:], y[EXAMPLES:]), batch_size=20)
    torch.manual_seed(0)
    model, log = Net(), tmp_path_factory.mktemp("trust") / "run.tlog"
    before = copy.deepcopy(model)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(log)],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, validation)
    return Fitted(before, train, validation, log)


def test_it_is_what_training_by_hand_without_the_example_gives(fitted: Fitted) -> None:
    trust, base = fitted.trust(), fitted.by_hand(None)
    assert trust.is_whole
    assert trust.example_ids == tuple(range(EXAMPLES))
    assert trust.population == EXAMPLES
    true = [fitted.by_hand(j) - base for j in trust.example_ids]
    assert trust.measured == pytest.approx(true, rel=1e-8, abs=1e-12)
    assert trust.headline == pytest.approx(np.corrcoef(trust.predicted, true)[0, 1], rel=1e-9)
    assert trust.slope == pytest.approx(np.polyfit(trust.predicted, true, 1)[0], rel=1e-8)
    assert trust.seconds > 0
    assert trust.memory_bytes > 0


def test_an_estimate_of_the_last_epochs_is_held_against_leaving_out_of_these(fitted: Fitted) -> None:
    trust, base = fitted.trust(estimator=LastEpochs(1)), fitted.by_hand(None)
    start = STEPS - STEPS // EPOCHS
    assert (trust.first_step, trust.reach) == (start, start)
    assert trust.headline is not None
    assert "the last 3 of 9 steps, all that these scores are about" in trust.sentence()
    true = [fitted.by_hand(j, start) - base for j in trust.example_ids]
    assert trust.measured == pytest.approx(true, rel=1e-8, abs=1e-12)


class Costs:
    """Gives `check_trust` a walk's scores, and every allowance that is asked for."""

    def __init__(self, fitted: Fitted, run: Any, query: Any) -> None:
        self.run, self.query = run, query
        first = lambda start: torch.as_tensor(first_drawn(run.log, EXAMPLES, first_step=start, last_step=STEPS))  # noqa: E731
        scores = torch.linspace(-1, 1, EXAMPLES, dtype=torch.float64)
        self.reached = {start: Reached(scores, first(start)) for start in (0, STEPS - 6, STEPS - 3)}

    def trust(self, seconds: float, **allowance: Any) -> tuple[Trust | None, tuple[str, ...]]:
        return check_trust(self.run, self.query, self.reached, Allowance(seconds=seconds, **allowance))


def test_what_is_too_dear_is_left_to_windows_and_at_last_undone(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.open(fitted.before, fitted.train, fitted.validation, log=fitted.log) as run:
        costs = Costs(fitted, run, runner.bind(run, MeanLoss()))
        monkeypatch.setattr("lightning_sgdinf.checks.trust.clock", lambda device: 0.0)
        monkeypatch.setattr(  # a step costs a second for each model
            "lightning_sgdinf.truth.removals.Removals._measured_pace",
            lambda self: Pace(0.0, 1.0, 0.0, EXAMPLES, True, 1, EXAMPLES),
        )
        whole, _ = costs.trust(1e9)
        fewer, _ = costs.trust(70.0)
        window, _ = costs.trust(40.0)
        none, (note,) = costs.trust(5.0)
        forced, _ = costs.trust(5.0, examples=8)
    assert whole is not None
    assert len(whole.example_ids) == EXAMPLES
    assert fewer is not None
    assert fewer.is_whole
    assert 6 <= len(fewer.example_ids) < EXAMPLES
    assert {0, EXAMPLES - 1} <= set(fewer.example_ids)  # the extremes
    assert fewer.low < fewer.high
    assert window is not None
    assert not window.is_whole
    assert window.first_step == STEPS - 6
    assert window.needed_seconds > 40
    base = fitted.by_hand(None)
    true = [fitted.by_hand(j, STEPS - 6) - base for j in window.example_ids]
    assert window.measured == pytest.approx(true, rel=1e-8, abs=1e-12)
    assert none is None
    assert "certificate='full'" in note
    assert forced is not None
    assert forced.is_whole
    assert len(forced.example_ids) == 8


def test_models_one_after_another_measure_the_same(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = fitted.trust()
    monkeypatch.setattr("lightning_sgdinf.truth.removals.known_optimizers", lambda: ())
    in_turn = fitted.trust()
    assert (at_once.at_once, in_turn.at_once) == (EXAMPLES, 1)
    assert in_turn.measured == pytest.approx(at_once.measured, rel=1e-9, abs=1e-13)


def test_no_number_without_its_reach(fitted: Fitted) -> None:
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="full")
    scores = runner.run(fitted.before, fitted.train, fitted.validation, log=fitted.log)
    certificate = scores.certificate
    assert certificate is not None
    assert certificate.trust is not None
    sentence = certificate.trust.sentence()
    assert repr(scores.most_harmful(3)).splitlines()[5] == sentence  # after the header, the head and three rows
    assert sentence in scores.most_helpful(3)._repr_html_()
    first, *others = scores.summary()
    assert "predicted change of mean validation loss had each been left out: most harmful is" in first
    assert others == list(certificate.reach())
    unchecked = replace(scores, certificate=None)
    assert unchecked.most_harmful(3).reach == ()
    measured = replace(scores, verified=torch.ones(EXAMPLES, dtype=torch.bool))
    assert measured.most_harmful(3).reach == ("Every score was measured by really leaving the example out.",)


def test_no_more_models_are_trained_at_once_than_memory_allows(fitted: Fitted) -> None:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.open(fitted.before, fitted.train, fitted.validation, log=fitted.log) as run:
        costs = Costs(fitted, run, runner.bind(run, MeanLoss()))
        one = Removals(run, costs.query, costs.reached[0].first, first_step=0, memory_bytes=1 << 30).pace.bytes
        for models in (3, 5, 8):
            removals = Removals(
                run, costs.query, costs.reached[0].first, first_step=0, memory_bytes=models * one + one // 2
            )
            assert removals.pace.stacked == (models > 3)  # of three, two are not worth the third beside them
            assert removals.memory_bytes(EXAMPLES) <= models * one
            assert removals.measure(range(6)).at_once == (min(models - 1, 6) if models > 3 else 1)


def test_a_certificate_does_not_begin_what_it_has_no_time_for(fitted: Fitted) -> None:
    allowance = fast_allowance(walk_seconds=10.0, spent_seconds=0.5, steps=100)
    assert allowance.of(6) == allowance.of(100) == pytest.approx(3.5)
    assert allowance.least_seconds == pytest.approx(0.8)
    short = fast_allowance(walk_seconds=1.0, spent_seconds=0.1, steps=100)
    assert short.of(24) == pytest.approx(0.9)
    assert short.of(32) == pytest.approx(0.3)
    assert full_allowance().least_seconds == 0
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.open(fitted.before, fitted.train, fitted.validation, log=fitted.log) as run:
        costs = Costs(fitted, run, runner.bind(run, MeanLoss()))
        trust, (note,) = costs.trust(0.07, least_seconds=0.08)
        forced, _ = costs.trust(0.07, least_seconds=0.08, examples=6)
    assert trust is None
    assert "certificate='full' does it" in note
    assert forced is not None
