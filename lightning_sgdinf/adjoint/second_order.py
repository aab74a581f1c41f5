"""Second derivatives of one traced pass: slopes, Hessian-vector products and what flows into running statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_sgdinf.adjoint.vjp import pull_rows, pull_rows_together
from lightning_sgdinf.kernels import RunningStatistics
from lightning_sgdinf.replay.moving_buffers import MovedBuffer


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """One pass with its gradient, which still has its graph.

    Attributes:
        loss: What was differentiated.
        weights: Example weights that entered, ``[B]``.
        statistics: Running statistics that the pass moved or read.
        grads: Gradient per parameter; ``None`` where there is none.
        moved: Buffers that the pass moved and that carry a graph, by name.
    """

    loss: Tensor
    weights: Tensor
    statistics: RunningStatistics | None
    grads: Sequence[Tensor | None]
    moved: Mapping[str, MovedBuffer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Products:
    r"""Result of differentiating :math:`\langle g(w, \theta), push\rangle` and the batch statistics.

    Attributes:
        slopes: In the weights, ``[Q, B]``.
        hessian: In the parameters, ``[Q, *shape]`` each; empty without curvature.
        statistics: In running statistics that the pass read, by buffer name, ``[Q, *shape]``.
        buffers: The buffers' adjoints as they were given, decayed where the pass moved the buffer.
    """

    slopes: Tensor
    hessian: list[Tensor]
    statistics: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def buffers_before(self) -> dict[str, Tensor]:
        """Return the adjoints of the buffers before the pass."""
        buffers = dict(self.buffers)
        for name, value in self.statistics.items():
            buffers[name] = buffers[name] + value if name in buffers else value
        return buffers


def differentiate(
    first: FirstOrder,
    parameters: Sequence[Tensor],
    pushes: Sequence[Tensor],
    buffers: Mapping[str, Tensor],
    *,
    curvature: bool = True,
    together: bool = False,
) -> Products:
    """Differentiate a pass once more.

    Args:
        first: The pass; its graph is freed, unless ``together``.
        parameters: What it was traced with.
        pushes: Adjoint of the gradient, ``[Q, *shape]`` per parameter.
        buffers: Adjoint of the buffers after the pass, ``[Q, *shape]`` by name.
        curvature: Differentiate in parameters and buffers, not in weights alone.
        together: All queries in one vectorised pass, not one after another.
    """
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []
    # <g, push> as outputs and their cotangents: parameters that the loss does not reach have no part in it, and a
    # gradient without a graph (a linear loss) is constant in weights and parameters alike.
    for grad, push in zip(first.grads, pushes, strict=True):
        if grad is not None and grad.requires_grad:
            outputs.append(grad)
            cotangents.append(push.to(grad.dtype))
    decayed = dict(buffers)
    leaves: dict[str, Tensor] = {}
    if first.statistics is not None and curvature:
        leaves = dict(first.statistics.leaves)
        # The pass did r <- (1 - m) r + m b: with lambda the adjoint of r after it, m <lambda, b> joins what is
        # differentiated, and (1 - m) lambda is left for r before it. A buffer that the pass moved twice goes through
        # this twice, the last update first.
        for update in reversed(first.statistics.updates):
            if update.name in decayed:
                if update.batch_statistic.requires_grad:
                    outputs.append(update.batch_statistic)
                    cotangents.append(decayed[update.name] * update.momentum)
                decayed[update.name] = decayed[update.name] * (1 - update.momentum)
    if curvature:
        # What moved buffers are after the pass is a function of parameters and of what they were before.
        for name, buffer in first.moved.items():
            if name in decayed and buffer.after is not None and buffer.after.requires_grad:
                outputs.append(buffer.after)
                cotangents.append(decayed[name])
            leaves[name] = buffer.before
    for name, buffer in first.moved.items():
        if buffer.after is not None:
            decayed.pop(name, None)
    # One backward pass gives all: slopes (in the weights), H push (in the parameters) and adjoints of the statistics
    # that eval-mode layers read (in their leaves).
    wanted = [first.weights, *parameters, *leaves.values()] if curvature else [first.weights]
    pull = pull_rows_together if together and outputs else pull_rows
    slopes, *rest = pull(outputs, wanted, cotangents, len(pushes[0]))
    count = len(parameters)
    return Products(slopes, rest[:count], dict(zip(leaves, rest[count:], strict=True)), decayed)
