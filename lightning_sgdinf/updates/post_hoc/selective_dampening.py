r"""Parameters that matter to the set more than to all data, made smaller (SSD).

With :math:`F` the mean square of batch gradients over all data and :math:`F_C` over the set, a parameter with
:math:`F_C > \alpha F` is multiplied by :math:`\min(\lambda F / F_C, 1)`.

References:
    Foster, Schoepf and Brintrup, "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
    AAAI 2024 (arXiv:2308.07707).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained, taught


@dataclass(frozen=True, slots=True)
class SelectiveDampening:
    """Dampening by importances; no training.

    Attributes:
        selection_weight: ``alpha``, > 0.
        dampening: ``lambda``, > 0.
        sgd: Its batch size and seed are used.
    """

    selection_weight: float = 10.0
    dampening: float = 1.0
    sgd: Sgd = field(default_factory=Sgd)

    def __post_init__(self) -> None:
        if not (0 < self.selection_weight < inf and 0 < self.dampening < inf):
            raise ConfigurationError(
                f"SelectiveDampening: expected weights > 0, got {self.selection_weight} and {self.dampening}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Dampen, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all.
        """
        retained(run, selection)
        expect_drops(selection)

        def teach(student: Student) -> ModelState:
            every, own = (_importances(student, ids) for ids in (range(run.examples), selection.drop))
            run.objective.load_buffers(run.model.buffers)
            with torch.no_grad():
                for parameter, of_all, of_set in zip(student.parameters, every, own, strict=True):
                    factor = (self.dampening * of_all / of_set.clamp_min(1e-30)).clamp_max(1.0)
                    parameter.mul_(torch.where(of_set > self.selection_weight * of_all, factor, 1.0))
            return student.state()

        return taught(run, self.sgd, teach, "Dampened the parameters that matter to the set more than to all data.")


def _importances(student: Student, ids: Sequence[int]) -> list[Tensor]:
    """Return the mean square of the gradients of the batches of one pass."""
    batches, count = student.order(ids), student.steps(len(ids))
    total = [torch.zeros_like(p) for p in student.parameters]
    for _ in range(count):
        for square, slope in zip(total, student.gradient(student.loss(next(batches))), strict=True):
            square += slope.square() / count
    return total
