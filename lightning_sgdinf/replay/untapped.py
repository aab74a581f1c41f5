"""Paths from the loss to the parameters that no example weight lies on: a penalty, or a missed term of the data.

Every pass that carries weights is looked at: from the loss back through autograd's graph, up to where weights enter. If
no parameter is reached, every term carries weights. If some are, what the gradient is without any example must be the
same for other data; that is asked once for each set of paths, so that a term that joins at some batches is noticed
where it does. A term whose factor is zero at some batches has the same paths there: a walk compares the slopes of every
step with its gradient, and before counterfactual runs every step is asked (`audit_steps`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay.example_weights import LossTap
from lightning_sgdinf.replay.training_step import TrainingStep

TOLERANCE = 1e-4
"""Part of the gradient that may depend on the data and not on example weights."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The operations between a loss and the parameters that no weight lies on.

    Attributes:
        operations: How many operations, by name, sorted.
        leaves: How many parameters are reached.
    """

    operations: tuple[str, ...]
    leaves: int


def paths_beyond_taps(loss: Tensor) -> Paths:
    """Follow autograd's graph from a loss to where example weights enter."""
    operations: list[str] = []
    leaves, seen, waiting = 0, set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name.startswith(("_WeightRows", "_Hold")):
            continue
        leaves += name.endswith("AccumulateGrad")
        operations.append(name)
        waiting.extend(next_node for next_node, _ in node.next_functions)
    return Paths(tuple(sorted(operations)), leaves)


def expect_penalty(
    objective: TrainingStep,
    step: Step,
    micro: MicroBatch,
    names: tuple[str, ...],
    others: Sequence[tuple[Step, MicroBatch]] = (),
) -> None:
    """Make sure that what no example's weight reaches of a step's gradient does not depend on its data.

    Args:
        objective: The opened model, at the state to look at.
        step: The step.
        micro: A pass of it.
        names: Loss functions that carry weights there.
        others: Batches to compare with; where none has other examples, one of the step's first example is made.

    Raises:
        UntappedLossError: It does; says how much of the gradient.
    """
    if micro.without_loss:
        return
    if not names:
        raise UntappedLossError(
            f"step {step.index}: the loss calls none of torch.nn.functional's loss functions, so example weights "
            f"cannot enter it. {WAYS_OUT}"
        )
    count = len(micro.example_ids)
    with _as_before(objective):
        batch = objective.batch(step, micro)
        whole, rest = (_gradient(objective, step, micro, batch, weight, count) for weight in (1.0, 0.0))
        other = _other_data(objective, step, micro, others)
        elsewhere = rest if other is None else _gradient(objective, step, micro, other, 0.0, count)
    untapped = float((rest - elsewhere).norm() / whole.norm().clamp_min(torch.finfo(whole.dtype).tiny))
    if not untapped <= TOLERANCE:
        raise UntappedLossError(
            f"step {step.index}: {untapped:.1%} of the gradient comes from a term of the loss that depends on the data "
            f"but not on example weights (tapped: {', '.join(sorted(set(names))) or 'nothing'}). {WAYS_OUT}"
        )


WAYS_OUT = (
    "Two ways out: name the sub-module whose output rows each feed only their own example's loss, "
    "InfluenceRunner(tap='head'); or give the LightningModule a method per_example_loss(batch, batch_idx) that returns "
    "the loss of each example, shape [B], or the runner a function of module, batch and index, "
    "InfluenceRunner(per_example_loss=...)."
)


def _gradient(objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any, weight: float, count: int) -> Tensor:
    like = objective.parameters[0]
    weights = torch.full((count,), weight, dtype=like.dtype, device=like.device)
    objective.prepare(step, micro)
    random_state.restore(micro.stepped_with)
    tap = LossTap(weights, None)
    grads = objective.gradient(objective.run(step, micro.batch_idx, batch, weights, tap=tap).loss)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(objective.parameters, grads, strict=True)]
    return objective.vector.join(filled).detach().double()


def _other_data(
    objective: TrainingStep, step: Step, micro: MicroBatch, others: Sequence[tuple[Step, MicroBatch]]
) -> Any:
    """A batch of other data for the same step; ``None`` if there is none."""
    same = set(micro.example_ids.tolist())
    for other_step, other in others:
        if set(other.example_ids.tolist()) != same:
            return objective.batch(other_step, other)
    if len(same) < 2:
        return None
    repeated = objective.source.repeated(micro, 0, step=step.index)
    random_state.restore(micro.transferred_with)
    return None if repeated is None else objective.bring(repeated)


@contextmanager
def _as_before(objective: TrainingStep) -> Iterator[None]:
    buffers = objective.read_buffers()
    with random_state.preserved():
        try:
            yield
        finally:
            with torch.no_grad():
                objective.load_buffers(buffers)
