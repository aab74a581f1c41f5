r"""A student that follows its teacher, the final model, on the rest, and departs from it on the set (SCRUB).

Each cycle descends on :math:`\gamma\,CE + \alpha\,KL(teacher \| student)` over the rest, and all but the last
ascend on the divergence over the set. Descent comes first: where student and teacher are equal the ascent has no
gradient.

References:
    Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 (arXiv:2302.09880).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, class_probabilities
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained, taught


@dataclass(frozen=True, slots=True)
class Scrub:
    """Cycles of following and departing.

    Attributes:
        cycles: At least 1; half an epoch over the rest each, the last a whole one.
        distillation: ``alpha``, at least 0.
        loss_weight: ``gamma``, at least 0.
        sgd: Settings.
    """

    cycles: int = 4
    distillation: float = 0.5
    loss_weight: float = 0.99
    sgd: Sgd = field(default_factory=lambda: Sgd(learning_rate=0.02))

    def __post_init__(self) -> None:
        if self.cycles < 1 or not (self.distillation >= 0 and self.loss_weight >= 0):
            raise ConfigurationError(
                f"Scrub: expected cycles >= 1 and weights >= 0, got {self.cycles}, {self.distillation} and "
                f"{self.loss_weight}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Teach the student, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; or the run's loss is not one cross entropy.
            NonFiniteError: It diverged.
        """
        rest = retained(run, selection)
        expect_drops(selection)
        teacher = log_probabilities(run, run.model)

        def teach(student: Student) -> ModelState:
            student.gradients += run.examples / 3
            down, up = student.order(rest), student.order(selection.drop, salt=1)
            for cycle in range(self.cycles):
                last = cycle == self.cycles - 1
                student.rest()
                for _ in range(student.steps(len(rest) if last else len(rest) // 2)):
                    ids = next(down)
                    loss, logits = student.loss_and_logits(ids)
                    apart = divergence(teacher[ids], logits)
                    student.descend(self.loss_weight * loss + self.distillation * apart)
                if not last:
                    student.rest()
                    for _ in range(student.steps(len(selection.drop))):
                        ids = next(up)
                        student.descend(-divergence(teacher[ids], student.loss_and_logits(ids)[1]), decay=0.0)
            return student.state()

        note = f"{self.cycles} cycles of following the model on the rest and leaving it on the set."
        return taught(run, self.sgd, teach, note)


def log_probabilities(run: OpenedRun, model: ModelState) -> Tensor:
    """Return a model's logarithmic class probabilities of all training examples, ``[N, C]``."""
    return class_probabilities(run, run.training.plain(), model).log_values


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of a student from its teacher.

    Args:
        teacher: Logarithmic probabilities ``[B, C]``.
        logits: Of the student, ``[B, C]``.
    """
    expected = teacher.to(logits)
    return (expected.exp() * (expected - torch.log_softmax(logits, 1))).sum(1).mean()
