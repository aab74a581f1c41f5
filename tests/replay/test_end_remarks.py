"""A model that was changed after the last step: whoever reads its scores is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.estimators import FinalParameters
from tests.runner.situations import Module, Situation, labels, normal

pytestmark = pytest.mark.filterwarnings("ignore:About the record of this run")
if not hasattr(callbacks, "WeightAveraging"):
    pytest.skip("this Lightning has no WeightAveraging", allow_module_level=True)
LAST, EPOCHS = "on_train_epoch_end", 2


class Editor(pl.Callback):
    """Halves the weights in one hook, at the end of training."""

    def __init__(self, hook: str) -> None:
        def edit(trainer: Any, module: Any, *args: Any) -> None:
            if hook != LAST or trainer.current_epoch == EPOCHS - 1:
                with torch.no_grad():
                    module.net.weight.mul_(0.5)

        setattr(self, hook, edit)


def largest(a: Tensor, b: Tensor, count: Tensor) -> Tensor:
    return torch.maximum(a, b)


def moving(a: Tensor, b: Tensor, count: Tensor) -> Tensor:
    return 0.9 * a + 0.1 * b


def notes(folder: Path, callbacks: list[Any], *, again: bool = False, **more: Any) -> str:
    module, path = Module(Situation()).double(), folder / "run.tlog"
    data = DataLoader(TensorDataset(normal(6, 5), labels(6), torch.arange(6)), 3)
    held_out = DataLoader(TensorDataset(normal(4, 5, seed=1), labels(4, seed=1)), 4)
    pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[TrajectoryRecorder(path), *callbacks], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, precision="64-true",
    ).fit(module, data, held_out)  # fmt: skip
    if again:
        module = Module(Situation()).double()
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    certificate = runner.run(module, data, held_out, log=path, **more).certificate
    assert certificate is not None
    return " ".join(certificate.notes)


@pytest.mark.parametrize("hook", [LAST, "on_train_end", "on_fit_end"])
def test_an_edit_after_the_last_step_is_told_of(hook: str, tmp_path: Path) -> None:
    said = notes(tmp_path, [Editor(hook)])
    assert "net.weight" in said
    assert "after the last step" in said
    assert "cores are about" in said


def test_an_average_that_is_not_recorded_is_told_of(tmp_path: Path) -> None:
    assert "other values than the record ends with in net.weight, net.bias" in notes(
        tmp_path, [callbacks.WeightAveraging(avg_fn=largest)]
    )


def test_estimators_without_a_walk_tell_of_it(tmp_path: Path) -> None:
    assert "after the last step" in notes(tmp_path, [Editor("on_train_end")], estimator=FinalParameters())


@pytest.mark.parametrize(
    "case",
    [{"callbacks": []}, {"callbacks": [callbacks.WeightAveraging(avg_fn=moving)]}, {"callbacks": [], "again": True}],
    ids=["as it ended", "averaged", "another object"],
)
def test_a_model_as_the_fit_left_it_needs_no_word(case: dict[str, Any], tmp_path: Path) -> None:
    assert "after the last step" not in notes(tmp_path, **case)
