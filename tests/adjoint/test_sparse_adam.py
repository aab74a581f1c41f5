"""SparseAdam leaves the rows that a batch does not look up, and their moments, alone: scores against training again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.testing import relative_error

N, BATCH, EPOCHS = 8, 2, 3
CODES = torch.tensor([[1, 2], [2, 3], [4, 1], [1, 1], [5, 0], [0, 2], [3, 5], [6, 6]])
OPEN = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1.0], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own


class Lookups(L.LightningModule):
    """Adds up looked-up rows and a bag; a closed gate leaves rows looked up without a gradient, and one is padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(8, 3, sparse=True, padding_idx=0)
        self.bags = nn.EmbeddingBag(8, 3, mode="sum", sparse=True)

    def losses(self, codes: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        h = torch.tanh(self.rows(codes)).sum(1) * gate[:, None] + self.bags(codes).tanh()
        return F.cross_entropy(h, y, reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(*batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(*batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SparseAdam(list(self.parameters()), lr=0.1, betas=(0.7, 0.9))


def loaders(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    train = TensorDataset(CODES, OPEN.to(dtype), LABELS)
    held_out = TensorDataset(CODES.flip(1), torch.ones(N, dtype=dtype), LABELS.flip(0))
    return DataLoader(train, BATCH), DataLoader(held_out, N)


def trained_again(weights: Tensor, accumulation: int) -> float:
    """Train in a loop of its own with weights on the examples' losses; the validation loss."""
    module = Lookups().double()
    optimizer = module.configure_optimizers()
    for number, start in enumerate([*range(0, N, BATCH)] * EPOCHS):
        part = slice(start, start + BATCH)
        losses = module.losses(CODES[part], OPEN[part], LABELS[part])
        ((losses * weights[part]).mean() / accumulation).backward()
        if (number + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return float(module.validation_step(next(iter(loaders()[1])), 0))


def definition(accumulation: int) -> Tensor:
    """Return minus the derivative of the validation loss in every example's weight, by central differences."""
    slopes = []
    for j in range(N):
        ends = [trained_again(torch.ones(N).double().index_fill(0, torch.tensor([j]), w), accumulation) for w in ENDS]
        slopes.append((ends[0] - ends[1]) / (ENDS[1] - ENDS[0]))
    return torch.tensor(slopes, dtype=torch.float64)[:, None]


ENDS = (1 - 1e-5, 1 + 1e-5)


def fit(path: Path, **options: Any) -> Lookups:
    module = Lookups()
    settings: dict[str, Any] = {"accelerator": "cpu", "precision": "64-true", "max_epochs": EPOCHS, "logger": False}
    settings |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    dtype = torch.float32 if options.get("precision") == "32-true" else torch.float64
    trainer = L.Trainer(callbacks=[TrajectoryRecorder(path, keep="every(3)")], **{**settings, **options})
    trainer.fit(module, *loaders(dtype))
    return module


@pytest.mark.parametrize("accumulation", [1, 2])
def test_scores_are_those_of_training_again(tmp_path: Path, accumulation: int) -> None:
    path = tmp_path / "run"
    module = fit(path, accumulate_grad_batches=accumulation)
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    scores = runner.run(module, *loaders(), log=path)
    assert relative_error(scores.values, definition(accumulation)) < 1e-6
    removed = runner.counterfactuals(module, *loaders(), log=path, leave_out=[[1], [3, 7]])
    ones = torch.ones(N, dtype=torch.float64)
    base = trained_again(ones, accumulation)
    expected = [trained_again(ones.index_fill(0, torch.tensor(s), 0), accumulation) - base for s in ([1], [3, 7])]
    torch.testing.assert_close(removed.values[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)


def test_in_float32(tmp_path: Path) -> None:
    module = fit(tmp_path / "run", precision="32-true")
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    scores = runner.run(module, *loaders(torch.float32), log=tmp_path / "run")
    assert relative_error(scores.values, definition(1)) < 1e-4
