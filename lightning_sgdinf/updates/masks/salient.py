"""The parameters with the largest gradients of the set's loss, element by element: the saliency of SalUn.

References:
    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024 (arXiv:2310.12508).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import expect_ratio


@dataclass(frozen=True, slots=True)
class SalientParameters:
    """Those with the largest absolute gradient of the set's mean loss, over the whole model.

    Attributes:
        ratio: Part of all parameters, in ``(0, 1]``.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        expect_ratio("SalientParameters", self.ratio)

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return them; see `ParameterCriterion.choose`."""
        objective = run.objective
        total = torch.zeros(objective.vector.size, dtype=torch.float64)
        examples = run.training.plain().subset(torch.tensor(sorted(ids)))
        with run.at(model) as loss:
            for places, batch in examples.batches(500):
                grads = objective.vector.join_gradients(objective.gradient(loss(batch)), objective.parameters)
                total += grads.detach().cpu().double() * len(places)
        chosen = torch.zeros(len(total), dtype=torch.bool)
        chosen[total.abs().argsort(descending=True, stable=True)[: int(self.ratio * len(total))]] = True
        return ParameterMask(chosen)
