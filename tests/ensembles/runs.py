"""Models and data that the tests of ensembles share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.ensembles import Sisa

CPU = partial(Trainer, accelerator="cpu")


class Points(Dataset):
    """Two inputs and one of three classes each, float64."""

    def __init__(self, count: int = 37, *, noisy: bool = False) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        self.y = torch.arange(count) % 3
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(2, dtype=torch.float64) / 10 if self.noisy else 0.0
        return self.x[index] + noise, self.y[index]


class Plain(LightningModule):
    """A linear classifier, momentum SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.8)


class Drawing(Plain):
    """Batch normalisation, dropout, Adam and a schedule over the whole training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3)
        ).double()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        assert isinstance(self.trainer.max_epochs, int)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Shifting(LightningDataModule):
    """A data module whose hook changes training batches."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Points(noisy=True), batch_size=7)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Points(9), batch_size=4)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x + 1, y


def sisa(root: Path, **changes: Any) -> Sisa:
    """An ensemble of three shards of two slices."""
    given: dict[str, Any] = {"shards": 3, "slices": 2, "epochs": 2, "batch_size": 4, "seed": 5, "keep": None}
    return Sisa(root=root, trainer=CPU, **{**given, **changes})


def same(a: Sisa, b: Sisa) -> bool:
    """Whether all parameters and buffers of two ensembles are equal, bit for bit."""
    return all(
        (p is None and q is None) or (p is not None and q is not None and all(torch.equal(p[n], q[n]) for n in p))
        for p, q in zip(a.states(), b.states(), strict=True)
    )


def failing_at(call: int, kind: type[Plain] = Drawing) -> Callable[[], LightningModule]:
    """A model whose training fails at the given training step of the process."""
    calls = 0

    class Failing(kind):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == call:
                raise RuntimeError("the machine went away")
            return super().training_step(batch, batch_idx)

    return Failing
