"""The loss of a step, audited: example weights must reach every term of it that depends on the data, once.

A term that no weight reaches is `lightning_sgdinf.replay.untapped`'s matter. The gradient must be linear in the
weights, which it is not where one loss function feeds another.

Which rows belong to which example is `lightning_sgdinf.replay.row_matching`'s matter: where rows see several examples
of the batch (in-batch negatives, mixed inputs), `batch_coupling` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.training_step import Trace
from lightning_sgdinf.replay.untapped import WAYS_OUT
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class LossAudit:
    """The outcome of an audit of a run's loss.

    Attributes:
        taps: Names of the loss functions that carry the weights.
        penalty: True if a part of the gradient belongs to no example, as that of a penalty on the weights.
        notes: Sentences that a reader of any result must know; empty if each example owns its rows.
    """

    taps: tuple[str, ...]
    penalty: bool
    notes: tuple[str, ...] = ()


def audit_loss(
    objective: Objective,
    state: ModelState,
    one: Step,
    other: Step,
    *,
    more: Iterable[Step] = (),
    tolerance: float = 1e-4,
) -> LossAudit:
    """Check the loss of one step.

    Args:
        objective: The opened model.
        state: Where to evaluate.
        one: A recorded step.
        other: Another step. Where it has the same examples (training on the full batch), a batch of one example many
            times takes its place.
        more: Further steps to learn the order of rows from, as far as it is not sure.
        tolerance: Part of the gradient, in ``(0, 1)``, that may fail to follow the weights.

    Raises:
        UntappedLossError: If a data-dependent term of the loss does not follow the weights; names the ways out.
    """
    objective.others = ((other, other.first_pass), (one, one.first_pass))
    full, taps = _gradient(objective, state, one, one.first_pass, 1.0)
    size = full.norm().clamp_min(torch.finfo(full.dtype).tiny)
    if objective.per_example_loss is not None:
        plain = _joined(objective, _trace(objective, state, one, one.first_pass, None))
        gap = ((plain - full).norm() / size).item()
        if not gap <= tolerance:
            raise UntappedLossError(
                f"step {one.index}: the mean of per_example_loss has another gradient than training_step's loss "
                f"(relative difference {gap:.1e}). per_example_loss must return what each example adds to the loss, "
                "times the batch size."
            )
    rest, _ = _gradient(objective, state, one, one.first_pass, 0.0)
    double, _ = _gradient(objective, state, one, one.first_pass, 2.0)
    bent = ((double - 2 * full + rest).norm() / size).item()
    if not bent <= tolerance:
        _refuse_bent_hooks(objective, state, one, bent, tolerance)
        raise UntappedLossError(
            f"step {one.index}: the gradient is not linear in the example weights (by {bent:.1%}): one loss function "
            f"feeds another, so weights enter twice (tapped: {', '.join(taps)}). {WAYS_OUT}"
        )
    for step in more:
        if objective.orders.undecided:
            _gradient(objective, state, step, step.first_pass, 1.0)
    coupling = batch_coupling(objective, one)
    return LossAudit(tuple(sorted(set(taps))), bool(rest.norm() > 1e-9 * size), (coupling,) if coupling else ())


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


def _gradient(
    objective: Objective, state: ModelState, step: Step, micro: MicroBatch, weight: float
) -> tuple[Tensor, tuple[str, ...]]:
    weights = torch.full(
        (len(micro.example_ids),), weight, dtype=objective.parameters[0].dtype, device=objective.host.device
    )
    trace = _trace(objective, state, step, micro, weights)
    return _joined(objective, trace), trace.taps


def _refuse_bent_hooks(objective: Objective, state: ModelState, step: Step, bent: float, tolerance: float) -> None:
    """Say that hooks make a gradient what is not linear in the weights, if without them it is."""
    phase = objective.passes.phase
    if not phase.hooks:
        return
    phase.hooks_act = False
    try:
        none, once, twice = (_gradient(objective, state, step, step.micro_batches[0], w)[0] for w in (0.0, 1.0, 2.0))
    finally:
        phase.hooks_act = True
    if (twice - 2 * once + none).norm() <= tolerance * once.norm():
        raise UntappedLossError(
            f"step {step.index}: the gradient is not linear in the example weights (by {bent:.1%}), because of "
            f"a gradient hook on {', '.join(sorted(phase.hooks)[:3])}. Hooks must be linear in the gradient, as a mask "
            "or a factor is; to clip, use the Trainer's gradient_clip_val and gradient_clip_algorithm."
        )


def _trace(objective: Objective, state: ModelState, step: Step, micro: MicroBatch, weights: Tensor | None) -> Trace:
    objective.load(state)
    return objective.trace(step, micro, objective.batch(step, micro), weights)


def _joined(objective: Objective, trace: Trace) -> Tensor:
    grads = objective.gradient(trace.loss)
    return objective.vector.join_gradients(grads, objective.parameters).detach().double()
