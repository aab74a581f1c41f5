"""The structures of a run's passes, each audited where it is first seen: weights must reach every term, once.

A structure is which loss functions it calls, how many rows per example they have,
and which paths to the parameters no weight lies on. The gradient must be linear in the weights, which it is not where
one loss function feeds another; a term that no weight reaches is `lightning_sgdinf.replay.untapped`'s matter.

Where a step bends the value of a loss (a root or a logarithm of a mean), an example's part depends on the losses of the
others: the gradient with some examples' weights and values moved is not the sum of what each does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay.example_weights import Values
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

Weighted: TypeAlias = Callable[[Tensor, Values], Tensor]
"""Returns the gradient of a pass, float64 ``[P]``, with example weights ``[B]`` that enter the values of some calls."""
MOVED = 3.0
"""Change of the weights of examples that may be coupled: enough to make other examples the hardest."""
COUPLED = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Part of the gradient that couples examples and is no rounding; ``COARSE`` in lower precisions."""
SCALED: tuple[Values, ...] = ("reduced", "all")
"""Losses that a trained factor may be multiplied with, the fewest first."""
COARSE = 1e-1


@dataclass(frozen=True, slots=True)
class Audited:
    """The outcome for one structure.

    Attributes:
        suspicious: True if paths without weights lead through the data: every pass has to be asked then.
        bent: True if a loss that is reduced to a number is bent afterwards; its value has to follow the weights.
        scaled: Losses that a trained factor is multiplied with (learned weights of several losses), whose gradient is
            the value of the loss: that has to follow the weights.
        coupled: True if what is made of losses of rows couples examples.
    """

    suspicious: bool
    bent: bool = False
    scaled: Values = "none"
    coupled: bool = False


@dataclass(slots=True)
class LossAudits:
    """The structures of a run's passes that were audited.

    Attributes:
        known: Their outcomes.
        coupled: Loss functions of passes that couple what is made of their rows' losses: name, and a step.
    """

    known: dict[PassStructure, Audited] = field(default_factory=dict)
    coupled: dict[str, int] = field(default_factory=dict)

    def copy(self) -> LossAudits:
        """Return the same, to go on from separately."""
        return LossAudits(dict(self.known), dict(self.coupled))

    def is_due(self, structure: PassStructure) -> bool:
        """Return true if a pass of a structure has to be audited."""
        return structure not in self.known or self.known[structure].suspicious

    def admit(
        self,
        objective: TrainingStep,
        step: Step,
        micro: MicroBatch,
        structure: PassStructure,
        others: Batches,
        weighted: Weighted,
    ) -> None:
        """Audit a pass.

        Args:
            objective: The opened model, at the state and with the buffers that the pass was taken at.
            step: The step.
            micro: The pass of it.
            structure: What the pass is like.
            others: Batches to compare with, where a term of the loss must not depend on the data.
            weighted: Computes the gradient of the pass with given example weights, which enter values as well.

        Raises:
            UntappedLossError: A term of its loss depends on the data and does not follow the weights.
        """
        if structure in self.known:
            names = [name for name, _ in structure.calls]
            expect_penalty(objective, step, micro, names, others, self.scaled)
        else:
            outcome = _audit(objective, step, micro, structure, others)
            if structure.calls and objective.per_example_loss is None and objective.tap is None:
                tolerance = COUPLED.get(objective.parameters[0].dtype, COARSE)
                bent, coupled = _couplings(weighted, len(micro.example_ids), tolerance)
                outcome = replace(outcome, bent=bent, coupled=coupled)
                if coupled:
                    self.coupled = {**dict.fromkeys((name for name, _ in structure.calls), step.index), **self.coupled}
            self.known[structure] = outcome

    @property
    def has_unweighted_terms(self) -> bool:
        """Return true if a pass so far had terms that carry no weights, or rows that are no example's."""
        return any(structure.has_unweighted_terms for structure in self.known)

    @property
    def has_unweighted_paths(self) -> bool:
        """Return true if a pass so far had terms that carry no weights."""
        return any(structure.paths.leaves for structure in self.known)

    @property
    def values(self) -> Values:
        """Return the calls of loss functions whose value has to follow the weights in passes so far."""
        return "reduced" if self.bent and self.scaled == "none" else self.scaled

    @property
    def scaled(self) -> Values:
        """Return the calls of loss functions that some pass so far multiplies with a trained factor."""
        asked = {outcome.scaled for outcome in self.known.values()}
        return "all" if "all" in asked else "reduced" if "reduced" in asked else "none"

    @property
    def bent(self) -> bool:
        """Return true if a pass so far bends the value of a loss."""
        return any(outcome.bent for outcome in self.known.values())

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
    scaled = _scaled(objective, step, micro, names, others)
    expect_linear(objective, step, micro)
    return Audited(suspicious=may_hide_data(objective, step, micro, others, scaled), scaled=scaled)


def _scaled(objective: TrainingStep, step: Step, micro: MicroBatch, names: Sequence[str], others: Batches) -> Values:
    """Return the losses that a trained factor is multiplied with, where the pass has no other term without weights.

    Raises:
        UntappedLossError: It has one.
    """
    try:
        expect_penalty(objective, step, micro, names, others)
    except UntappedLossError as untapped:
        if objective.tap is not None:
            raise
        for values in SCALED:
            try:
                expect_penalty(objective, step, micro, names, others, values)
            except UntappedLossError:
                continue
            if not may_hide_data(objective, step, micro, others, values):  # the factor is one of no example's
                return values
        raise untapped from None
    return "none"


def _couplings(weighted: Weighted, count: int, tolerance: float) -> tuple[bool, bool]:
    """Return whether a reduced loss is bent, and whether something else couples examples by their losses."""

    def are_coupled(values: Values) -> bool:
        """Return true if two halves of a batch, with moved weights, do together something else than each by itself."""
        halves = torch.arange(count) % 2
        one, other, both, none = (
            weighted(1 + MOVED * moved, values) for moved in (1 - halves, halves, torch.ones(count), torch.zeros(count))
        )
        return not bool((both - one - other + none).norm() <= tolerance * none.norm())

    if count < 2 or not are_coupled("all"):
        return False, False
    bent = are_coupled("reduced")
    return bent, not bent
