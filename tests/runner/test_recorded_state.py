"""Scores of a state on the way are those of a run that ended there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sgdinf import InfluenceRunner, ScoreOnFitEnd, Scores, TrajectoryRecorder
from lightning_sgdinf.errors import ConfigurationError, DataMismatchError
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay
from tests.runner.hook_situations import Data, Net

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "precision": "64-true",
    "max_epochs": 3,
}


class Momentum(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class WorseAtTheEnd(Momentum):
    """Its validation is best after the second of three epochs."""

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().validation_step(batch, batch_idx)
        self.log("steered", float(abs(self.current_epoch - 1)))
        return loss


def scored(module: Any, log: Path, **arguments: Any) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate=arguments.pop("certificate", "off"))
    return runner.run(module, datamodule=Data(), log=log, **arguments)


def fit(log: Path, *callbacks: Any, module: Any = None, **settings: Any) -> Any:
    module = module or Momentum()
    recorder = TrajectoryRecorder(log, **settings.pop("recorder", {}))
    options = {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    pl.Trainer(callbacks=[recorder, *callbacks], **{**QUIET, **options, **settings}).fit(module, datamodule=Data())
    return module


@pytest.mark.parametrize("keep", ["every_step", "every(4)"])
@pytest.mark.parametrize("steps", [3, 5])
def test_a_number_of_steps(tmp_path: Path, keep: str, steps: int) -> None:
    module = fit(tmp_path / "run.tlog", recorder={"keep": keep})
    fit(tmp_path / "short.tlog", max_steps=steps)
    level = "fast" if steps == 5 else "off"
    at, short = (
        scored(module, tmp_path / "run.tlog", at=steps, certificate=level),
        scored(module, tmp_path / "short.tlog", certificate=level),
    )
    assert bool(short.values.any())
    torch.testing.assert_close(at.values, short.values, rtol=1e-12, atol=1e-15)
    assert at.provenance["query_values"] == short.provenance["query_values"]
    assert at.provenance["steps"] == steps
    whole = scored(module, tmp_path / "run.tlog")
    assert at.provenance["log"] != whole.provenance["log"]
    assert not torch.allclose(at.values, whole.values)
    assert torch.equal(scored(module, tmp_path / "run.tlog", at=9).values, whole.values)


def test_the_best_checkpoint(tmp_path: Path) -> None:
    kept = ModelCheckpoint(dirpath=tmp_path, filename="best", monitor="steered")
    ended = ScoreOnFitEnd(at="best", runner=InfluenceRunner(accelerator="cpu", progress=False, certificate="off"))
    module = fit(tmp_path / "run.tlog", kept, ended, module=WorseAtTheEnd())
    expected = scored(module, tmp_path / "run.tlog", at=6).values
    for at in ("best", tmp_path / "best.ckpt", str(tmp_path / "best.ckpt")):
        assert torch.equal(scored(module, tmp_path / "run.tlog", at=at).values, expected)
    assert ended.failure is None
    assert ended.scores is not None
    assert torch.equal(ended.scores.values, expected)


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    module = fit(tmp_path / "run.tlog")
    for at in (0, 10, -1):
        with pytest.raises(ConfigurationError, match="from 1 to 9"):
            scored(module, tmp_path / "run.tlog", at=at)
    for wrong in (True, 2.0):
        with pytest.raises(ConfigurationError, match="expected a number of steps, 'best'"):
            scored(module, tmp_path / "run.tlog", at=wrong)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_what_is_no_checkpoint_of_the_run(tmp_path: Path) -> None:
    log = tmp_path / "run.tlog"
    saver = ModelCheckpoint(dirpath=tmp_path, filename="own", monitor="val_loss", save_on_train_epoch_end=False)
    module = fit(log, saver)
    with pytest.raises(ConfigurationError, match="the model has no Trainer"):
        scored(Momentum(), log, at="best")
    fit(tmp_path / "other.tlog", ModelCheckpoint(dirpath=tmp_path, filename="other", monitor="val_loss"))
    with pytest.raises(ConfigurationError, match=r"no checkpoint of the recorded run"):
        scored(module, log, at=tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="expected tensors that"):
        scored(module, log, at=tmp_path / "none.ckpt")
    own = next(tmp_path.glob("own*.ckpt"))
    saved = torch.load(own, weights_only=True)
    saved["state_dict"]["net.bias"] += 1e-6
    torch.save(saved, tmp_path / "changed.ckpt")
    with pytest.raises(DataMismatchError, match=r"net\.bias is not what the log has"):
        scored(module, log, at=tmp_path / "changed.ckpt")
    torch.save({**saved, "note": Path("x")}, tmp_path / "objects.ckpt")
    with pytest.raises(ConfigurationError, match=r"holds pathlib.*loading it runs code.*the number of its steps"):
        scored(module, log, at=tmp_path / "objects.ckpt")
    plain = fit(tmp_path / "plain.tlog")
    with pytest.raises(ConfigurationError, match=r"no ModelCheckpoint\(monitor=\.\.\.\) of the fit kept one"):
        scored(plain, tmp_path / "plain.tlog", at="best")


def test_counterfactuals_and_updates_of_a_state_on_the_way(tmp_path: Path) -> None:
    """They are those of a run that ended there; the best checkpoint is such a state."""
    kept = ModelCheckpoint(dirpath=tmp_path, filename="best", monitor="steered")
    module = fit(tmp_path / "run.tlog", kept, module=WorseAtTheEnd(), recorder={"keep": "every(4)"})
    fit(tmp_path / "short.tlog", max_steps=6, module=WorseAtTheEnd())
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    sets, change = [[2], [0, 5]], {"update": CounterfactualReplay(), "selection": Selection(drop=(2, 5))}
    given = {"model": module, "datamodule": Data()}
    short = runner.counterfactuals(**given, log=tmp_path / "short.tlog", leave_out=sets)
    whole = runner.counterfactuals(**given, log=tmp_path / "run.tlog", leave_out=sets)
    changed = runner.update(**given, log=tmp_path / "short.tlog", **change)
    for at in (6, "best", tmp_path / "best.ckpt"):
        truth = runner.counterfactuals(**given, log=tmp_path / "run.tlog", leave_out=sets, at=at)
        torch.testing.assert_close(truth.values, short.values, rtol=1e-10, atol=1e-15)
        assert not torch.allclose(truth.values, whole.values, rtol=1e-2)
        updated = runner.update(**given, log=tmp_path / "run.tlog", at=at, **change)
        for name, value in changed.state.params.items():
            assert torch.equal(updated.state.params[name], value)
