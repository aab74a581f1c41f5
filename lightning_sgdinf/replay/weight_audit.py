"""The loss of a run, audited before anything is computed from it.

That weights reach every term is asked of every structure of a pass (`lightning_sgdinf.replay.structure_audits`);
which rows belong to which example is `lightning_sgdinf.replay.row_matching`'s matter. Where rows see several examples
of the batch (in-batch negatives, mixed inputs), `row_warnings` says so.
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
    """

    taps: tuple[str, ...]
    penalty: bool


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
    return LossAudit(objective.audits.taps, objective.audits.has_unweighted_terms)


def row_warnings(objective: Objective) -> tuple[str, ...]:
    """Return sentences on rows of the loss that no single example is known to own, in the passes taken so far.

    Args:
        objective: The opened model, after an audit; after a walk, of all its steps.
    """
    said = (_coupling(objective), _coupled_losses(objective), _taken_at_their_word(objective))
    return tuple(filter(None, said))


def _coupling(objective: Objective) -> str:
    coupled = [f"{name} at step {step}" for name, step in sorted(objective.orders.coupled.items())]
    if not coupled:
        return ""
    return (
        "The loss of an example depends on the other examples of its batch even in eval mode (in-batch negatives, "
        f"mixed inputs; seen in {', '.join(coupled)}). Scores are of rows by their place: a method "
        "per_example_loss(batch, batch_idx) settles it."
    )


def _coupled_losses(objective: Objective) -> str:
    coupled = [f"{name} at step {step}" for name, step in sorted(objective.audits.coupled.items())]
    if not coupled:
        return ""
    return (
        "What an example counts for depends on the losses of the other examples of its batch (the hardest are chosen, "
        "weights are made of the batch's losses, or rows are reduced by hand and a root or logarithm is taken; seen "
        f"after {', '.join(coupled)}). Scores are with that as it was. Of a root or logarithm of a mean they are right "
        "where the loss function itself reduces, reduction='mean'."
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
