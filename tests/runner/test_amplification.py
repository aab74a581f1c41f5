"""The weight of an early change relative to a late one, where that can be written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import Certificate, InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.certificate import Amplification, Trust
from lightning_sgdinf.estimators import Estimator, LastEpochs, NoHessian, SgdInfluence

STEPS_OF_AN_EPOCH, EPOCHS = 3, 4
STEPS = STEPS_OF_AN_EPOCH * EPOCHS


class Parabola(L.LightningModule):
    """One weight, drawn to what it is given: a step multiplies a small change of it by ``1 - lr``."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.weight, self.lr = nn.Parameter(torch.zeros(1, dtype=torch.float64)), lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * F.mse_loss(self.weight.expand_as(batch[0]), batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def certificate(folder: Path, lr: float, estimator: Estimator | None = None, level: Any = "fast") -> Certificate:
    values = torch.linspace(-1, 2, 2 * STEPS_OF_AN_EPOCH, dtype=torch.float64)[:, None]
    train, validation = DataLoader(TensorDataset(values), batch_size=2), DataLoader(TensorDataset(values + 1))
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(folder / "run.tlog")],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Parabola(lr)
    trainer.fit(model, train, validation)
    runner = InfluenceRunner(accelerator="cpu", certificate=level, progress=False)
    scores = runner.run(model, train, validation, log=folder / "run.tlog", estimator=estimator or SgdInfluence())
    assert scores.certificate is not None
    return scores.certificate


def test_a_step_that_overshoots_amplifies_what_came_before(tmp_path: Path) -> None:
    checked = certificate(tmp_path, lr=2.5)
    assert checked.amplification is not None
    assert checked.amplification.factor == pytest.approx(1.5**STEPS, rel=1e-12)
    assert (checked.amplification.step, checked.amplification.first_step) == (0, 0)
    (warning,) = (line for line in replace(checked, trust=None).warnings if line.startswith("This run amplifies"))
    assert "one before step 0 weighs 129.7 times" in warning
    assert "before step 0 weighs 1.3e+02 times one" in " ".join(checked.summary())


def test_a_step_that_settles_does_not(tmp_path: Path) -> None:
    checked = certificate(tmp_path, lr=0.5)
    assert checked.amplification == Amplification(factor=1.0, step=STEPS, first_step=0)
    assert checked.warnings == ()
    assert any(line.startswith("Amplification: none") for line in checked.summary())


def test_a_walk_of_the_last_epoch_speaks_of_it_only(tmp_path: Path) -> None:
    amplification = certificate(tmp_path, lr=2.5, estimator=LastEpochs(1)).amplification
    assert amplification is not None
    assert amplification.factor == pytest.approx(1.5**STEPS_OF_AN_EPOCH, rel=1e-12)
    assert amplification.first_step == amplification.step == STEPS - STEPS_OF_AN_EPOCH


def test_trust_of_the_whole_run_says_more(tmp_path: Path) -> None:
    checked = certificate(tmp_path, lr=2.5, level="full")
    assert checked.amplification is not None
    assert checked.amplification.is_high
    assert checked.trust is not None
    assert checked.trust.first_step == 0
    assert not any(line.startswith("This run amplifies") for line in checked.warnings)
    if checked.trust.is_low:
        (low,) = (line for line in checked.warnings if line.startswith("Low trust"))
        assert "The run amplifies small changes" in low
        assert "SgdInfluence(curvature_scale=0.3)" in low


@pytest.mark.parametrize("estimator", [NoHessian(), SgdInfluence(curvature_scale=0.3)])
def test_of_what_is_no_derivative_nothing_is_said(tmp_path: Path, estimator: Estimator) -> None:
    assert certificate(tmp_path, lr=2.5, estimator=estimator).amplification is None


def test_it_is_kept_with_the_scores() -> None:
    kept = Certificate(level="fast", amplification=Amplification(factor=2.5, step=7, first_step=0))
    assert Certificate.from_json(kept.to_json()) == kept
    assert kept.amplification is not None
    low = replace(kept, amplification=replace(kept.amplification, factor=2.0))
    assert kept.warnings != low.warnings == ()


def test_trust_of_a_window_does_not_hide_it() -> None:
    known = {"example_ids": (1,), "predicted": (1.0,), "measured": (1.0,), "correlation": 1.0, "low": 1.0, "high": 1.0}
    checked = Certificate(
        level="fast",
        trust=Trust(first_step=5, **known),
        amplification=Amplification(factor=9.0, step=0, first_step=0),
    )
    assert len(checked.warnings) == 1
    assert replace(checked, trust=Trust(first_step=0, **known)).warnings == ()
