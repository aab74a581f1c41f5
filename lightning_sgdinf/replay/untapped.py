"""Paths from the loss to the parameters that no example weight lies on: a penalty, or a missed term of the data.

Every pass that carries weights is looked at: from the loss back through autograd's graph, up to where weights enter. If
no parameter is reached, every term carries weights. If some are, what the gradient is without any example must be the
same for other data. That is asked when such paths are first seen. A term whose factor is zero there would pass, and so
would a hinge that nothing violates; so it is also asked what these paths would give if no gradient on them were zero
(`may_hide_data`). Where that depends on the data, every pass is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.batch_structure import map_tensors
from lightning_sgdinf.errors import UnsupportedRunError, UntappedLossError
from lightning_sgdinf.kernels import WAYS_AROUND, once_differentiable_in
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay.example_weights import LossTap, Values
from lightning_sgdinf.replay.pass_structure import nodes_beyond_taps
from lightning_sgdinf.replay.training_step import Trace, TrainingStep

TOLERANCE = 1e-4
"""Part of the gradient that may depend on the data and not on example weights, or fail to follow the weights."""

WAYS_OUT = (
    "Two ways out: name the sub-module whose output rows each feed only their own example's loss, "
    "InfluenceRunner(tap='head'); or give the LightningModule a method per_example_loss(batch, batch_idx) that returns "
    "the loss of each example, shape [B], or the runner a function of module, batch and index, "
    "InfluenceRunner(per_example_loss=...)."
)

Batches = Sequence[tuple[Step, MicroBatch]]


def expect_linear(objective: TrainingStep, step: Step, micro: MicroBatch) -> None:
    """Make sure that a pass's gradient is linear in the example weights.

    Args:
        objective: The opened model, at the state to look at.
        step: The step.
        micro: A pass of it.

    Raises:
        UntappedLossError: It is not, as where one loss function feeds another; says by how much.
    """
    batch = objective.batch(step, micro)
    bent = _bent(objective, step, micro, batch)
    if not bent <= TOLERANCE:
        _refuse_bent_hooks(objective, step, micro, batch, bent)
        taps = _trace(objective, step, micro, batch, 1.0).taps
        raise UntappedLossError(
            f"{_pass(step, micro)}: the gradient is not linear in the example weights (by {100 * bent:.1f} %): one "
            f"loss function feeds another, so weights enter twice (tapped: {', '.join(taps)}). {WAYS_OUT}"
        )


def expect_twice_differentiable(loss: Tensor, step: Step, micro: MicroBatch) -> None:
    """Make sure that a pass has no operation that is differentiated once: of a marked function torch takes the second
    derivative for zero.

    Args:
        loss: Of the pass, with its graph.
        step: The step.
        micro: The pass of it.

    Raises:
        UnsupportedRunError: It has; names it.
    """
    if once := once_differentiable_in(loss):
        raise UnsupportedRunError(
            f"{_pass(step, micro)} calls {', '.join(once)}, of which torch has no second derivative. {WAYS_AROUND}."
        )


def _bent(objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any) -> float:
    """Return how far the gradient is from being linear in the weights."""
    bent = _gradient(objective, step, micro, batch, 1.0)
    size = _size(bent)
    bent *= -2
    for weight in (0.0, 2.0):
        bent += _gradient(objective, step, micro, batch, weight)
    return float(bent.norm() / size)


def _refuse_bent_hooks(objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any, bent: float) -> None:
    """Say that hooks make a gradient what is not linear in the weights, if without them it is."""
    phase = objective.passes.phase
    if not phase.hooks:
        return
    phase.hooks_act = False
    try:
        without = _bent(objective, step, micro, batch)
    finally:
        phase.hooks_act = True
    if without <= TOLERANCE:
        raise UntappedLossError(
            f"{_pass(step, micro)}: the gradient is not linear in the example weights (by {100 * bent:.1f} %), because "
            f"of a gradient hook on {', '.join(sorted(phase.hooks)[:3])}. Hooks must be linear in the gradient, as a "
            "mask or a factor is; to clip, use the Trainer's gradient_clip_val and gradient_clip_algorithm."
        )


def expect_penalty(
    objective: TrainingStep,
    step: Step,
    micro: MicroBatch,
    names: Sequence[str],
    others: Batches = (),
    values: Values = "none",
) -> None:
    """Make sure that what no example's weight reaches of a step's gradient does not depend on its data.

    Args:
        objective: The opened model, at the state to look at.
        step: The step.
        micro: A pass of it.
        names: Loss functions that carry weights there.
        others: Batches to compare with; where none has other examples, one of the step's first example is made.
        values: Loss functions whose value follows the weights.

    Raises:
        UntappedLossError: It does; says how much of the gradient.
    """
    if micro.without_loss:
        return
    count = len(micro.example_ids)
    batch, other = objective.batch(step, micro), _other_data(objective, step, micro, others)
    whole, rest = (_gradient(objective, step, micro, batch, w, values) for w in (1.0, 0.0))
    elsewhere = rest if other is None else _gradient(objective, step, micro, other, 0.0, values)
    untapped = float((rest - elsewhere).norm() / _size(whole))
    if not untapped <= TOLERANCE:
        seen = ", ".join(sorted(set(names)))
        raise UntappedLossError(
            f"{_pass(step, micro)}: {100 * untapped:.1f} % of the gradient comes from a term of the loss that depends "
            f"on the data but not on the weights of its {count} examples, which enter at {seen}. {WAYS_OUT}"
        )


def may_hide_data(
    objective: TrainingStep, step: Step, micro: MicroBatch, others: Batches = (), values: Values = "none"
) -> bool:
    """Return true if paths without weights lead through the data, even if no gradient comes along them now.

    Gradients that are zero on these paths are replaced by other numbers, the same for any data: a penalty on the
    parameters then still gives the same for other data, a term that a factor of zero switches off does not.

    Args:
        objective: The opened model, at the state to look at.
        step: The step.
        micro: A pass of it.
        others: Batches to compare with.
        values: Loss functions whose value follows the weights.
    """
    batch, other = objective.batch(step, micro), _other_data(objective, step, micro, others)
    if other is None:
        return False
    here, there = (_opened_gradient(objective, step, micro, data, values) for data in (batch, other))
    return not torch.allclose(here, there, rtol=1e-3, atol=1e-6 * float(here.abs().max()), equal_nan=True)


def expect_mean(objective: TrainingStep, step: Step, micro: MicroBatch) -> None:
    """Make sure that the mean of ``per_example_loss`` has the gradient of the loss that was trained on.

    Args:
        objective: The opened model, at the state to look at.
        step: The step.
        micro: A pass of it.

    Raises:
        UntappedLossError: It has another; says by how much.
    """
    if micro.without_loss:
        return
    batch = objective.batch(step, micro)
    mean = _gradient(objective, step, micro, batch, 1.0)
    with _as_before(objective):
        objective.prepare(step, micro)
        random_state.restore(micro.stepped_with)
        plain = _joined(objective, objective.run(step, micro.batch_idx, batch))
    gap = float((plain - mean).norm() / _size(mean))
    if not gap <= TOLERANCE:
        raise UntappedLossError(
            f"{_pass(step, micro)}: the mean of per_example_loss has another gradient than training_step's loss "
            f"(relative difference {gap:.1e}). per_example_loss must return what each of the "
            f"{len(micro.example_ids)} examples adds to the loss, times the batch size."
        )


def refuse_without_taps(objective: TrainingStep, step: Step, micro: MicroBatch) -> None:
    """Say why no example weight enters a pass.

    Raises:
        UntappedLossError: Always; names the loss functions that were called, if any was.
    """
    tap = LossTap(torch.ones(len(micro.example_ids), dtype=objective.parameters[0].dtype), None)
    with _as_before(objective):
        objective.prepare(step, micro)
        random_state.restore(micro.stepped_with)
        objective.run(step, micro.batch_idx, objective.batch(step, micro), tap.weights, tap=tap)
    called = ", ".join(sorted(set(tap.passed)))
    if objective.tap is not None:
        why = f"the sub-module {objective.tap!r} (tap=) returns no tensor with a gradient in this step, so weights"
    elif called:
        why = f"the loss functions that it calls ({called}) are given nothing that weights can enter, so they"
    else:
        why = "the loss calls none of torch.nn.functional's loss functions that have rows, so example weights"
    raise UntappedLossError(f"{_pass(step, micro)}: {why} cannot enter it. {WAYS_OUT}")


def _pass(step: Step, micro: MicroBatch) -> str:
    """Name a pass in a message: its step, and examples where a step has several passes."""
    if len(step.micro_batches) == 1:
        return f"step {step.index}"
    return f"step {step.index} (batch {micro.batch_idx}, examples {micro.example_ids[:4].tolist()} ...)"


def _opened_gradient(objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any, values: Values) -> Tensor:
    """Return the gradient without any example, with other numbers in the place of zeros on paths without weights."""
    with _as_before(objective):
        trace = _trace(objective, step, micro, batch, 0.0, values)
        for node in nodes_beyond_taps(trace.loss):
            if not node.name().endswith("AccumulateGrad"):
                node.register_prehook(partial(_without_zeros, rounded=values != "none"))  # it goes with the graph
        return _joined(objective, trace)


def _without_zeros(grads: Sequence[Tensor | None], *, rounded: bool) -> tuple[Tensor | None, ...]:
    """Return gradients with other numbers for zeros; ``rounded``, for what rounding leaves of a value that is zero."""

    def filled(grad: Tensor) -> Tensor:
        least = 100 * torch.finfo(grad.dtype).eps if rounded else 0.0
        numbers = torch.linspace(1, 2, grad.numel(), dtype=grad.dtype, device=grad.device).view(grad.shape)
        return torch.where(grad.abs() <= least, numbers, grad)

    return tuple(g if g is None or not g.is_floating_point() else filled(g) for g in grads)


def _trace(
    objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any, weight: float, values: Values = "none"
) -> Trace:
    """Take a pass in which all examples have one weight, so that it does not matter whose rows are whose."""
    like = objective.parameters[0]
    weights = torch.full((len(micro.example_ids),), weight, dtype=like.dtype, device=like.device)
    objective.prepare(step, micro)
    random_state.restore(micro.stepped_with)
    own = map_tensors(batch, torch.clone)  # a step may change its batch in place
    tap = None if objective.per_example_loss is not None else LossTap(weights, None, values=values)
    return objective.run(step, micro.batch_idx, own, weights, tap=tap)


def _gradient(
    objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any, weight: float, values: Values = "none"
) -> Tensor:
    with _as_before(objective):
        return _joined(objective, _trace(objective, step, micro, batch, weight, values))


def _joined(objective: TrainingStep, trace: Trace) -> Tensor:
    like = objective.parameters[0]
    joined = torch.zeros(objective.vector.size, dtype=torch.float64, device=like.device)
    objective.vector.add_to(joined, objective.gradient(trace.loss))
    return joined


def _size(gradient: Tensor) -> Tensor:
    return gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)


def _other_data(objective: TrainingStep, step: Step, micro: MicroBatch, others: Batches) -> Any:
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
    """Take a pass inside that leaves buffers and generators as they are."""
    buffers = objective.read_buffers()
    with random_state.preserved():
        try:
            yield
        finally:
            with torch.no_grad():
                objective.load_buffers(buffers)
