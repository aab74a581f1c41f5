r"""Training on without the set, and hoping that it is forgotten; sparse, if asked for.

With ``sparsity`` the loss has :math:`\gamma \lVert\theta\rVert_1`, its factor falling linearly to 0.

References:
    Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023 (arXiv:2304.04934).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, ReplaceLabels, relabelled, replace_second
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, retained, taught


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Further epochs on the retained examples, relabelled ones with their new labels.

    Attributes:
        epochs: At least 1.
        sgd: Settings.
        sparsity: Factor of the sum of the parameters' absolute values in the loss, at first; at least 0. The published
            value is 5e-4.
        replace_labels: How labels are changed in a batch.
    """

    epochs: int = 1
    sgd: Sgd = field(default_factory=Sgd)
    sparsity: float = 0.0
    replace_labels: ReplaceLabels = replace_second

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.sparsity >= 0:
            raise ConfigurationError(
                f"FineTuning: expected epochs >= 1 and sparsity >= 0, got {self.epochs} and {self.sparsity}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Train on, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, names an example that the data set does not have, or drops all.
            NonFiniteError: It diverged.
        """
        rest = retained(run, selection)
        edit = relabelled(selection.relabel, self.replace_labels) if selection.relabel else None

        def teach(student: Student) -> ModelState:
            batches, steps = student.order(rest), self.epochs * student.steps(len(rest))
            for step in range(steps):
                loss = student.loss(next(batches), edit)
                if self.sparsity:
                    size = sum(p.abs().sum() for p in student.parameters)
                    loss = loss + self.sparsity * (1 - step / steps) * size
                student.descend(loss)
            return student.state()

        return taught(run, self.sgd, teach, f"Trained on for {self.epochs} epochs without the set.")
