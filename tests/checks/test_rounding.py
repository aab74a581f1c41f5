"""Checks where rounding has the say: gradients that are zero but for it, and steps that ask for float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder
from lightning_sgdinf.errors import StepMismatchError

N, WIDTH = 12, 8


class Attentive(L.LightningModule):
    """The bias of its keys has no gradient, and lies in one tensor with those of queries and values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Tampered(Attentive):
    """Changes the gradient of one element of the queries' bias, which is no rounding."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        bias = self.attention.in_proj_bias
        assert bias is not None
        assert bias.grad is not None
        bias.grad[0] *= -1


class InFloat32(Attentive):
    """Takes its loss of what it has asked for in float32, as causal language models do."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x).float()


def scores(model: Attentive, path: Path) -> Scores:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 5, WIDTH, generator=generator), torch.randint(0, 3, (N,), generator=generator)
    loaders = DataLoader(TensorDataset(x, y), 4), DataLoader(TensorDataset(x.flip(0), y), N)
    L.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[TrajectoryRecorder(path)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, *loaders)  # fmt: skip
    return InfluenceRunner(accelerator="cpu", progress=False).run(model, *loaders, log=path)


def test_elements_that_rounding_drives_are_no_mismatch(tmp_path: Path) -> None:
    certificate = scores(Attentive(), tmp_path / "run").certificate
    assert certificate is not None
    assert certificate.step_replay is not None
    assert certificate.step_replay.steps == 6


def test_another_element_of_the_same_tensor_is_one(tmp_path: Path) -> None:
    with pytest.raises(StepMismatchError, match="in_proj_bias"):
        scores(Tampered(), tmp_path / "run")


def test_a_step_that_asks_for_float32_is_checked_in_float64(tmp_path: Path) -> None:
    certificate = scores(InFloat32(), tmp_path / "run").certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.relative_error < 1e-3
