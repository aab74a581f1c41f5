"""A ranking by chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True)
class RandomBaseline:
    """Uniform random values from a generator of its own.

    Attributes:
        seed: Of that generator.
        title: Name of the values, for tables and axes.
    """

    seed: int = 0
    title = "random order"

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]`` in ``[-1, 0)``."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(run.examples, generator=generator, dtype=torch.float64) - 1
