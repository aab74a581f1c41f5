"""A ranking by chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.replay.opened import OpenedRun


@dataclass(frozen=True, slots=True)
class RandomBaseline:
    """Uniform random values from a generator of its own.

    Attributes:
        seed: Of that generator.
    """

    seed: int = 0

    @property
    def title(self) -> str:
        """What the values are."""
        return "random order"

    def rank(self, run: OpenedRun) -> Tensor:
        """Values ``[N]`` in ``[-1, 0)``."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(run.examples, generator=generator, dtype=torch.float64) - 1
