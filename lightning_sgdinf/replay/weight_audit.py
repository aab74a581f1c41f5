"""The loss of a run, audited before anything is computed from it.

That weights reach every term is asked of every structure of a pass (`lightning_sgdinf.replay.structure_audits`);
which rows belong to which example is `lightning_sgdinf.replay.row_matching`'s matter. Where rows see several examples
of the batch (in-batch negatives, mixed inputs), `batch_coupling` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lightning_sgdinf.log import Step
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class LossAudit:
    """The outcome of an audit of a run's loss.

    Attributes:
        taps: Names of the loss functions that carry the weights.
        penalty: True if a part of the loss belongs to no example, as a penalty on the weights.
        notes: Sentences that a reader of any result must know; empty if each example owns its rows.
    """

    taps: tuple[str, ...]
    penalty: bool
    notes: tuple[str, ...] = ()


def audit_loss(
    objective: Objective, state: ModelState, one: Step, other: Step, *, more: Iterable[Step] = ()
) -> LossAudit:
    """Check the loss of one step.

    Args:
        objective: The opened model.
        state: Where to evaluate.
        one: A recorded step.
        other: Another step. Where it has the same examples (training on the full batch), a batch of one example many
            times takes its place.
        more: Further steps to learn the order of rows from, as far as it is not sure.

    Raises:
        UntappedLossError: If a data-dependent term of the loss does not follow the weights; names the ways out.
    """
    objective.others = ((other, other.first_pass), (one, one.first_pass))
    _trace(objective, state, one)
    for step in more:
        if objective.orders.undecided:
            _trace(objective, state, step)
    audits = objective.audits
    notes = (batch_coupling(objective, one), _taken_at_their_word(objective))
    return LossAudit(audits.taps, audits.has_unweighted_terms, tuple(note for note in notes if note))


def batch_coupling(objective: Objective, step: Step) -> str:
    """Say in a sentence if rows of the loss see several examples; empty if each example owns its rows.

    Args:
        objective: The opened model, after an audit.
        step: The audited step.
    """
    coupled = sorted(objective.orders.coupled)
    if not coupled:
        return ""
    return (
        "The loss of an example depends on the other examples of its batch even in eval mode (in-batch negatives, "
        f"mixed inputs; seen in {', '.join(coupled)} at step {step.index}). Scores are of rows by their "
        "place: a method per_example_loss(batch, batch_idx) settles it."
    )


def _taken_at_their_word(objective: Objective) -> str:
    names = sorted(objective.orders.unverified)
    if not names:
        return ""
    return (
        f"rows= was taken at its word for {', '.join(names)}: its rows depend on several examples of the batch, or no "
        "batch can be made of one example, so that running examples alone does not show whose they are."
    )


def _trace(objective: Objective, state: ModelState, step: Step) -> None:
    micro = step.first_pass
    like = objective.parameters[0]
    weights = torch.ones(len(micro.example_ids), dtype=like.dtype, device=like.device)
    objective.load(state)
    objective.trace(step, micro, objective.batch(step, micro), weights)
