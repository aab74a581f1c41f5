"""Ascent on the set's loss until it is forgotten (NegGrad); it spoils the rest unless the model has converged."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_sgdinf.errors import ConfigurationError, ForgettingError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.forgotten import Forgotten
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained, taught

EVERY = 2
"""Steps between two looks at the accuracy on the set."""


@dataclass(frozen=True, slots=True)
class GradientAscent:
    """Steps up the set's loss, batch by batch.

    Attributes:
        sgd: Settings.
        forgotten: When to stop.
        most: Steps after which it is given up, at least 1.
    """

    sgd: Sgd = field(default_factory=lambda: Sgd(learning_rate=0.01, momentum=0.0, weight_decay=0.0))
    forgotten: Forgotten = field(default_factory=Forgotten)
    most: int = 400

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigurationError(f"GradientAscent(most): expected at least 1, got {self.most}")

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Ascend, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; or what it drops is forgotten already.
            ForgettingError: It is not forgotten after ``most`` steps.
            NonFiniteError: It diverged.
        """
        retained(run, selection)
        expect_drops(selection)
        watched = self.forgotten.on(run, selection.drop)

        def teach(student: Student) -> ModelState:
            batches = student.order(selection.drop)
            for step in range(1, self.most + 1):
                student.descend(-student.loss(next(batches)))
                if step % EVERY == 0:
                    state = student.state()
                    done = watched(state) <= self.forgotten.accuracy
                    run.objective.load(state)
                    if done:
                        student.gradients += watched.forwards / 3
                        return state
            raise ForgettingError(
                f"{self.most} steps of ascent do not make the model forget these {len(selection.drop)} examples; take "
                "more steps or a larger learning rate, or ExtrapolatedReplay"
            )

        return taught(run, self.sgd, teach, "Ascended on the loss of the set until it was forgotten.")
