"""Two teachers: the final model for the rest, and one that knows nothing for the set.

The teacher that knows nothing is the model as training began, from the record.

References:
    Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023 (arXiv:2205.08096).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, stored_at_or_before
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.post_hoc.scrub import divergence, log_probabilities
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained, taught


@dataclass(frozen=True, slots=True)
class BadTeacher:
    """Further epochs on all examples, each with the predictions of its teacher in the place of a label.

    Attributes:
        epochs: At least 1.
        sgd: Settings.
    """

    epochs: int = 1
    sgd: Sgd = field(default_factory=lambda: Sgd(learning_rate=0.01))

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigurationError(f"BadTeacher(epochs): expected at least 1, got {self.epochs}")

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Teach, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; or the run's loss is not one cross entropy.
            StateNotStoredError: The record does not have the model as training began.
            NonFiniteError: It diverged.
        """
        retained(run, selection)
        expect_drops(selection)
        first = run.log.state(stored_at_or_before(run.log, 0))
        teacher, untrained = log_probabilities(run, run.model), log_probabilities(run, first)
        own = sorted(selection.drop)
        teacher[own] = untrained[own]

        def teach(student: Student) -> ModelState:
            student.gradients += 2 * run.examples / 3
            batches = student.order(range(run.examples))
            for _ in range(self.epochs * student.steps(run.examples)):
                ids = next(batches)
                student.descend(divergence(teacher[ids], student.loss_and_logits(ids)[1]))
            return student.state()

        return taught(run, self.sgd, teach, f"Taught by two teachers for {self.epochs} epochs.")
