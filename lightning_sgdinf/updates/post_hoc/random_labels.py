"""Training on with wrong labels for the set; in its salient parameters alone, that is SalUn.

SalUn is ``RandomLabels(parameters=SalientParameters(0.5))``.

References:
    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024 (arXiv:2310.12508).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import (
    OpenedRun,
    ReplaceLabels,
    class_probabilities,
    relabelled,
    replace_second,
)
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.masks import AllParameters, ParameterCriterion
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained, taught


@dataclass(frozen=True, slots=True)
class RandomLabels:
    """Further epochs on all examples, those of the set with a random wrong label each.

    Attributes:
        epochs: At least 1.
        parameters: Chooses the parameters that may change.
        sgd: Settings; its seed draws the labels, too.
        replace_labels: How labels are changed in a batch.
    """

    epochs: int = 1
    parameters: ParameterCriterion = field(default_factory=AllParameters)
    sgd: Sgd = field(default_factory=lambda: Sgd(learning_rate=0.01))
    replace_labels: ReplaceLabels = replace_second

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigurationError(f"RandomLabels(epochs): expected at least 1, got {self.epochs}")

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Train on, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; or the run is not that of a classifier.
            NonFiniteError: It diverged.
        """
        retained(run, selection)
        expect_drops(selection)
        wrong = self._wrong_labels(run, selection)
        mask = self.parameters.choose(run, run.model, selection.drop)

        def teach(student: Student) -> ModelState:
            batches, edit, split = (
                student.order(range(run.examples)),
                relabelled(wrong, self.replace_labels),
                student.split(mask),
            )
            for _ in range(self.epochs * student.steps(run.examples)):
                student.descend(student.loss(next(batches), edit), mask=split)
            return student.state()

        note = f"Trained on for {self.epochs} epochs with random labels for the set, in {mask.count} parameters."
        return taught(run, self.sgd, teach, note)

    def _wrong_labels(self, run: OpenedRun, selection: Selection) -> dict[int, int]:
        ids = sorted(selection.drop)
        answers = class_probabilities(run, run.training.plain().subset(torch.tensor(ids)), run.model)
        classes = answers.log_values.shape[1]
        generator = torch.Generator().manual_seed(self.sgd.seed)
        shift = torch.randint(1, classes, (len(ids),), generator=generator)
        return dict(zip(ids, ((answers.labels + shift) % classes).tolist(), strict=True))
