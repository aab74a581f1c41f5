"""An audit that example weights reach every term of the loss that depends on the data.

With all weights at zero, what is left of the gradient must not depend on the batch (a penalty on the weights is fine),
and the gradient must be linear in the weights. A loss term written by hand, which no tap reaches, fails the first; one
tapped twice fails the second.

Which rows belong to which example is `lightning_sgdinf.replay.row_matching`'s matter: where rows see several examples
of the batch (in-batch negatives, mixed inputs), `batch_coupling` says so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.log.batch_bytes import first_row_only
from lightning_sgdinf.replay.objective import Objective, Trace
from lightning_sgdinf.state import ModelState

_WAYS_OUT = (
    "Two ways out: name the sub-module whose output rows each feed only their own example's loss, "
    "InfluenceRunner(tap='head'); or give the LightningModule a method per_example_loss(batch, batch_idx) that returns "
    "the loss of each example, shape [B]."
)


def audit_loss(
    objective: Objective, state: ModelState, one: Step, other: Step, *, tolerance: float = 1e-4
) -> tuple[str, ...]:
    """Check the loss of one step.

    Args:
        objective: The opened model.
        state: Where to evaluate.
        one: A recorded step.
        other: Another step. Where it has the same examples (training on the full batch), a batch of one example many
            times takes its place.
        tolerance: Part of the gradient, in ``(0, 1)``, that may fail to follow the weights.

    Returns:
        Names of the loss functions that carry the weights.

    Raises:
        UntappedLossError: If a data-dependent term of the loss does not follow the weights; names the ways out.
    """
    full, taps = _gradient(objective, state, one, one.micro_batches[0], 1.0)
    size = full.norm().clamp_min(torch.finfo(full.dtype).tiny)
    if not taps:
        raise UntappedLossError(
            f"step {one.index}: the loss calls none of torch.nn.functional's loss functions, so example weights cannot "
            f"enter it. {_WAYS_OUT}"
        )
    if objective.weighs_by_method:
        plain = _joined(objective, _trace(objective, state, one, one.micro_batches[0], None))
        gap = ((plain - full).norm() / size).item()
        if not gap <= tolerance:
            raise UntappedLossError(
                f"step {one.index}: the mean of per_example_loss has another gradient than training_step's loss "
                f"(relative difference {gap:.1e}). per_example_loss must return what each example adds to the loss, "
                "times the batch size."
            )
    rest, _ = _gradient(objective, state, one, one.micro_batches[0], 0.0)
    elsewhere, _ = _gradient(objective, state, other, _different(one.micro_batches[0], other.micro_batches[0]), 0.0)
    untapped = ((rest - elsewhere).norm() / size).item()
    if not untapped <= tolerance:
        raise UntappedLossError(
            f"step {one.index}: {untapped:.1%} of the gradient comes from a term of the loss that depends on the data "
            f"but not on example weights (tapped: {', '.join(sorted(set(taps)))}). {_WAYS_OUT}"
        )
    double, _ = _gradient(objective, state, one, one.micro_batches[0], 2.0)
    bent = ((double - 2 * full + rest).norm() / size).item()
    if not bent <= tolerance:
        raise UntappedLossError(
            f"step {one.index}: the gradient is not linear in the example weights (by {bent:.1%}): one loss function "
            f"feeds another, so weights enter twice (tapped: {', '.join(taps)}). {_WAYS_OUT}"
        )
    return tuple(sorted(set(taps)))


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


def _repeated(micro: MicroBatch) -> MicroBatch:
    """Return a batch of the first example, as often as there were examples."""
    draw = micro.draws[0]
    ids = np.full_like(draw.example_ids, draw.example_ids[0])
    read = draw.batch
    batch = None if read is None else lambda: first_row_only(read())
    return replace(micro, draws=(replace(draw, example_ids=ids, digest=None, batch=batch),))


def _different(micro: MicroBatch, other: MicroBatch) -> MicroBatch:
    """Return a batch of other examples."""
    same = set(micro.example_ids.tolist()) == set(other.example_ids.tolist())
    return _repeated(micro) if same and len(micro.draws) == 1 else other


def _gradient(
    objective: Objective, state: ModelState, step: Step, micro: MicroBatch, weight: float
) -> tuple[Tensor, tuple[str, ...]]:
    weights = torch.full(
        (len(micro.example_ids),), weight, dtype=objective.parameters[0].dtype, device=objective.host.device
    )
    trace = _trace(objective, state, step, micro, weights)
    return _joined(objective, trace), trace.taps


def _trace(objective: Objective, state: ModelState, step: Step, micro: MicroBatch, weights: Tensor | None) -> Trace:
    objective.load(state)
    return objective.trace(step, micro, objective.batch(step, micro), weights)


def _joined(objective: Objective, trace: Trace) -> Tensor:
    grads = objective.gradient(trace.loss)
    return objective.vector.join_gradients(grads, objective.parameters).detach().double()
