"""The structures of a run's passes, each audited where it is first seen: weights must reach every term, once.

A structure is which loss functions it calls, how many rows per example they have,
and which paths to the parameters no weight lies on. The gradient must be linear in the weights, which it is not where
one loss function feeds another; a term that no weight reaches is `lightning_sgdinf.replay.untapped`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.replay.training_step import TrainingStep
from lightning_sgdinf.replay.untapped import (
    Batches,
    expect_linear,
    expect_mean,
    expect_penalty,
    may_hide_data,
    refuse_without_taps,
)


@dataclass(frozen=True, slots=True)
class Audited:
    """The outcome for one structure.

    Attributes:
        suspicious: True if paths without weights lead through the data: every pass has to be asked then.
    """

    suspicious: bool


@dataclass(slots=True)
class LossAudits:
    """The structures of a run's passes that were audited.

    Attributes:
        known: Their outcomes.
    """

    known: dict[PassStructure, Audited] = field(default_factory=dict)

    def copy(self) -> LossAudits:
        """Return the same, to go on from separately."""
        return LossAudits(dict(self.known))

    def is_due(self, structure: PassStructure) -> bool:
        """Return true if a pass of a structure has to be audited."""
        return structure not in self.known or self.known[structure].suspicious

    def admit(
        self, objective: TrainingStep, step: Step, micro: MicroBatch, structure: PassStructure, others: Batches
    ) -> None:
        """Audit a pass.

        Args:
            objective: The opened model, at the state and with the buffers that the pass was taken at.
            step: The step.
            micro: The pass of it.
            structure: What the pass is like.
            others: Batches to compare with, where a term of the loss must not depend on the data.

        Raises:
            UntappedLossError: A term of its loss depends on the data and does not follow the weights.
        """
        if structure in self.known:
            expect_penalty(objective, step, micro, [name for name, _ in structure.calls], others)
        else:
            self.known[structure] = _audit(objective, step, micro, structure, others)

    @property
    def has_unweighted_terms(self) -> bool:
        """Return true if a pass so far had terms that carry no weights, or rows that are no example's."""
        return any(structure.has_unweighted_terms for structure in self.known)

    @property
    def has_unweighted_paths(self) -> bool:
        """Return true if a pass so far had terms that carry no weights."""
        return any(structure.paths.leaves for structure in self.known)

    @property
    def suspicious(self) -> bool:
        """Return true if some passes have to be asked each time."""
        return any(outcome.suspicious for outcome in self.known.values())

    @property
    def taps(self) -> tuple[str, ...]:
        """Return the names of all loss functions that carry weights, sorted."""
        return tuple(sorted({name for structure in self.known for name, _ in structure.calls}))


def _audit(
    objective: TrainingStep, step: Step, micro: MicroBatch, structure: PassStructure, others: Batches
) -> Audited:
    if objective.per_example_loss is not None:
        expect_mean(objective, step, micro)
        return Audited(suspicious=False)
    if not structure.calls:
        refuse_without_taps(objective, step, micro)
    names = [name for name, _ in structure.calls]
    if not structure.paths.leaves:
        expect_linear(objective, step, micro)
        return Audited(suspicious=False)
    expect_penalty(objective, step, micro, names, others)
    expect_linear(objective, step, micro)
    return Audited(suspicious=may_hide_data(objective, step, micro, others))
