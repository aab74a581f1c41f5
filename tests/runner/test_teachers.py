"""Teachers that follow the model: exact where they are buffers that a step moves; else told at once, and refused."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.estimators import FinalParameters, KohLiang
from tests.adjoint.test_held_constants import BATCH, EPOCHS, N, Net, data, trained_again


class Taught(Net):
    """Is drawn to an average of itself, which ``training_step`` moves first."""

    everything_in_the_optimizer = False

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.a).requires_grad_(False)

    def follow(self) -> None:
        for theirs, own in zip(self.teacher.parameters(), self.a.parameters(), strict=True):
            theirs.data = theirs.data * 0.8 + own.data * 0.2

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            self.follow()
        apart = F.mse_loss(self.a(x), self.teacher(x), reduction="none").sum(1)
        return super().losses(x, y) + apart

    def configure_optimizers(self) -> Any:
        held = [p for p in self.parameters() if self.everything_in_the_optimizer or p.requires_grad]
        return torch.optim.SGD(held, lr=0.3, momentum=0.9)


class HeldByTheOptimizer(Taught):
    everything_in_the_optimizer = True


class MovedByAHook(Taught):
    def follow(self) -> None:
        pass

    def on_train_batch_end(self, *args: Any) -> None:
        super().follow()


class InBuffers(Taught):
    """As the documentation says."""

    def __init__(self) -> None:
        super().__init__()
        for part in self.teacher.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, parameter.detach())

    @torch.no_grad()
    def follow(self) -> None:
        for theirs, own in zip(self.teacher.buffers(), self.a.parameters(), strict=True):
            theirs.mul_(0.8).add_(own, alpha=0.2)


class InBuffersByData(InBuffers):
    def follow(self) -> None:
        for theirs, own in zip(self.teacher.buffers(), self.a.parameters(), strict=True):
            theirs.data.mul_(0.8).add_(own.data, alpha=0.2)


class InBuffersBySettingData(InBuffers):
    def follow(self) -> None:
        for theirs, own in zip(self.teacher.buffers(), self.a.parameters(), strict=True):
            theirs.data = theirs.data * 0.8 + own.data * 0.2


class InBuffersByCopy(InBuffers):
    def follow(self) -> None:
        for theirs, own in zip(self.teacher.buffers(), self.a.parameters(), strict=True):
            theirs.copy_(theirs * 0.8 + own.detach() * 0.2)


class InBuffersByLerp(InBuffers):
    def follow(self) -> None:
        for theirs, own in zip(self.teacher.buffers(), self.a.parameters(), strict=True):
            theirs.lerp_(own.detach(), 0.2)


LOADERS = DataLoader(data(N, 1), BATCH), DataLoader(data(5, 2), 5)


def fit(kind: type[Net], path: Path) -> tuple[Net, list[str]]:
    module = kind()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        L.Trainer(
            accelerator="cpu", precision="64-true", max_epochs=EPOCHS, callbacks=[TrajectoryRecorder(path)],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, *LOADERS)  # fmt: skip
    return module, [str(w.message) for w in warned if "About the record" in str(w.message)]


def score(module: nn.Module, path: Path, **how: Any) -> Tensor:
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate=how.pop("certificate", "fast"))
    return runner.run(module, *LOADERS, log=path, **how).values[:, 0]


@pytest.mark.parametrize("kind", [InBuffers, InBuffersByData, InBuffersBySettingData, InBuffersByCopy, InBuffersByLerp])
def test_a_teacher_in_buffers_is_exact(kind: type[Net], tmp_path: Path) -> None:
    module, told = fit(kind, tmp_path / "run")
    assert told == []
    values = score(module, tmp_path / "run", certificate="off")
    example = int(values.abs().argmax())
    ones = torch.ones(N, dtype=torch.float64)
    ends = [trained_again(kind, ones.index_fill(0, torch.tensor([example]), w)) for w in (1 - 1e-5, 1 + 1e-5)]
    assert float(values[example]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("kind", [Taught, HeldByTheOptimizer])
def test_a_teacher_that_a_step_moves_is_told_at_once_and_refused_for_its_true_reason(
    kind: type[Net], tmp_path: Path
) -> None:
    module, told = fit(kind, tmp_path / "run")
    assert len(told) == 1
    assert "training_step itself moves teacher.weight, teacher.bias" in told[0]
    for estimator in (None, FinalParameters()):
        with pytest.raises(UnsupportedRunError, match=r"moves teacher\.weight, teacher\.bias.*register_buffer"):
            score(module, tmp_path / "run", estimator=estimator)


def test_a_teacher_that_a_hook_moves_leaves_estimators_of_the_final_model(tmp_path: Path) -> None:
    module, told = fit(MovedByAHook, tmp_path / "run")
    assert [text.partition(" changed ")[0] for text in told if "before step" in text] != []
    with pytest.raises(UnsupportedRunError, match=r"before step 3 .* changed param teacher\.weight"):
        score(module, tmp_path / "run")
    for estimator in (FinalParameters(), KohLiang(damping=1.0)):
        assert score(module, tmp_path / "run", estimator=estimator).abs().max() > 0
