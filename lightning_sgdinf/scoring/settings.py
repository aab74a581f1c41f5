"""The settings of an `InfluenceRunner`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lightning_sgdinf.certificate import Level
from lightning_sgdinf.checkpointing import MEMORY_BYTES
from lightning_sgdinf.replay import PerExampleLoss, RowOwners


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings by which scores are computed; the constructor of `InfluenceRunner` documents the fields."""

    precision: str | None = None
    certificate: Level = "fast"
    tap: str | None = None
    per_example_loss: PerExampleLoss | None = None
    val_loader: int | None = None
    rows: RowOwners | None = None
    per_epoch: bool = False
    memory_bytes: int = MEMORY_BYTES
    progress: bool = True
    compile: bool | None = None
    rebuild: Literal["auto", "exact", "close"] = "auto"

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the floating-point precision to compute in, if not the recorded one."""
        return torch.float64 if self.precision == "64-true" else None
