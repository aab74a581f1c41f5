"""Descent on the rest and ascent on the set, together (NegGrad+).

No setting is safe: what works on one model makes another diverge.

References:
    Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 (arXiv:2302.09880).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained, taught


@dataclass(frozen=True, slots=True)
class NegGradPlus:
    """Steps down ``weight`` times the rest's loss less ``1 - weight`` times the set's.

    Attributes:
        epochs: Over the rest, at least 1.
        weight: In ``(0, 1)``.
        sgd: Settings.
    """

    epochs: int = 1
    weight: float = 0.95
    sgd: Sgd = field(default_factory=lambda: Sgd(learning_rate=0.02))

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 < self.weight < 1:
            raise ConfigurationError(
                f"NegGradPlus: expected epochs >= 1 and weight in (0, 1), got {self.epochs} and {self.weight}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Descend and ascend, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all.
            NonFiniteError: It diverged.
        """
        rest = retained(run, selection)
        expect_drops(selection)

        def teach(student: Student) -> ModelState:
            down, up = student.order(rest), student.order(selection.drop, salt=1)
            for _ in range(self.epochs * student.steps(len(rest))):
                kept, own = student.loss(next(down)), student.loss(next(up))
                student.descend(self.weight * kept - (1 - self.weight) * own)
            return student.state()

        return taught(run, self.sgd, teach, f"Descended on the rest and ascended on the set for {self.epochs} epochs.")
