r"""One recorded step, done again so that it can be differentiated.

With ``s`` the state, :math:`g = \sum_i w_i \nabla l_i(\theta)` the gradient and :math:`s' = \Phi(s, g)` the step, an
adjoint ``u`` of ``s'`` is pulled back to one of ``s``, and the slopes of the batch's examples fall out:

.. math:: (carry, push) = (\partial\Phi)^T u, \qquad slope_j = \langle \nabla l_j, push\rangle, \qquad
    u_\theta = carry_\theta + H\,push.

Slopes and Hessian-vector product come from one differentiation of :math:`\langle g(w, \theta), push\rangle`. Cost per
step: one forward pass, one backward pass with graph, and per query one pass through both. With gradient accumulation
the push needs the sum of all gradients first, where the rule depends on it; then there is one more forward and backward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.objective import Objective, Trace
from lightning_sgdinf.adjoint.rules import UpdateRule
from lightning_sgdinf.adjoint.share import RowShare
from lightning_sgdinf.adjoint.update import TakenStep, take_step
from lightning_sgdinf.adjoint.vector import Adjoint
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.log.records import MicroBatch, Step
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class _Pass:
    """One micro-batch, traced."""

    count: int
    weights: Tensor
    trace: Trace
    grads: list[Tensor | None]


class ReplayedStep:
    """A step at the state it is to be differentiated at.

    Attributes:
        step: The record.
        before: The state.
        is_epoch_end: Whether it is the last step of its epoch.
        taken: The optimizer step that was taken with the gradient at that state; set by `pull`.
        buffers_after: The module's buffers after the step; set by `pull`.
    """

    def __init__(
        self,
        step: Step,
        before: ModelState,
        objective: Objective,
        rule: UpdateRule,
        query_at: Callable[[ModelState], Adjoint],
        *,
        is_epoch_end: bool = False,
        share: RowShare | None = None,
    ) -> None:
        self.step = step
        self.before = before
        self.is_epoch_end = is_epoch_end
        self.taken: TakenStep | None = None
        self.buffers_after: dict[str, Tensor] = {}
        self._objective = objective
        self._rule = rule
        self._query_at = query_at
        self._share = share

    def query_gradient(self) -> Adjoint:
        """The gradient of the queries at this very state, for methods that take it anew along the way."""
        return self._query_at(self.before)

    def pull(self, adjoint: Adjoint, *, curvature: bool = True) -> tuple[Adjoint, Tensor]:
        """Pull an adjoint of the state after the step back to the state before it.

        Args:
            adjoint: Of the state after the step.
            curvature: Include the Hessian-vector product; without it only the optimizer's own part moves the adjoint.

        Returns:
            The adjoint of the state before, and the slopes of the step's examples ``[Q, B]``, in the order of
            ``step.example_ids``: the derivative of each query in each example's weight.

        Raises:
            NonFiniteError: If the result is not finite; names the step.
        """
        adjoint = _after_average(adjoint, self.step)
        micros = self.step.micro_batches
        objective = self._objective
        objective.load(self.before)
        if len(micros) == 1:
            batch = objective.batch(self.step, micros[0])
            single = self._trace(micros[0], batch)
            grads: Sequence[Tensor | None] = single.grads
            passes: list[tuple[MicroBatch, Any, dict[str, Tensor]]] = []
        else:
            single = None
            grads, passes = self._sum_gradients(micros)
        self.buffers_after = objective.read_buffers()
        self.taken = take_step(
            self._rule, objective.vector, self.before, self._over_processes([_detached(g) for g in grads]), self.step
        )
        carry, state, push = self.taken.pull(adjoint)
        buffers = dict(adjoint.buffers)
        slopes: list[Tensor] = []
        if single is not None:
            carry, part = self._differentiate(single, push, carry, buffers, curvature)
            slopes.append(part)
        for micro, batch, before in reversed(passes):
            objective.load_buffers(before)
            carry, part = self._differentiate(self._trace(micro, batch), push, carry, buffers, curvature)
            slopes.insert(0, part)
        result = torch.cat(slopes, dim=1) if len(slopes) > 1 else slopes[0]
        if not bool(torch.isfinite(carry.sum() + result.sum())):
            raise NonFiniteError(
                f"the adjoint is no longer finite at step {self.step.index}: the run amplifies small changes without "
                "bound there "
                "(a learning rate at the edge of divergence), so no influence is defined. Use fewer steps "
                "(last_epochs) or a smaller step size."
            )
        return (
            Adjoint(
                params=carry,
                optimizer=state,
                buffers=buffers,
                average=adjoint.average,
                average_buffers=adjoint.average_buffers,
            ),
            result,
        )

    def _trace(self, micro: MicroBatch, batch: Any) -> _Pass:
        objective = self._objective
        count = len(micro.example_ids)
        own, fraction = self._own_rows(batch, count)
        weights = torch.ones(
            _length(self._share, count),
            dtype=objective.parameters[0].dtype,
            device=objective.host.device,
            requires_grad=True,
        )
        trace = objective.trace(self.step, micro, own, weights, statistics=True)
        loss = trace.loss if fraction == 1 else trace.loss * fraction
        return _Pass(count, weights, trace, objective.gradient(loss, create_graph=True))

    def _own_rows(self, batch: Any, count: int) -> tuple[Any, float]:
        if self._share is None:
            return batch, 1.0
        return self._share.part(batch, count), self._share.fraction(count)

    def _over_processes(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return list(tensors) if self._share is None else self._share.sum(tensors)

    def _sum_gradients(
        self, micros: Sequence[MicroBatch]
    ) -> tuple[list[Tensor | None], list[tuple[MicroBatch, Any, dict[str, Tensor]]]]:
        objective = self._objective
        total: list[Tensor | None] = [None] * len(objective.parameters)
        passes: list[tuple[MicroBatch, Any, dict[str, Tensor]]] = []
        for micro in micros:
            batch = objective.batch(self.step, micro)
            passes.append((micro, batch, objective.read_buffers()))
            own, fraction = self._own_rows(batch, len(micro.example_ids))
            grads = objective.gradient(objective.trace(self.step, micro, own).loss * fraction)
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, grads, strict=True)]
        return total, passes

    def _differentiate(
        self, one: _Pass, push: Tensor, carry: Tensor, buffers: dict[str, Tensor], curvature: bool
    ) -> tuple[Tensor, Tensor]:
        """Add ``H push`` to the carry, move the buffers' adjoints, return carry and slopes ``[Q, B]``."""
        objective = self._objective
        pushes = objective.vector.split(push)
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        for grad, part in zip(one.grads, pushes, strict=True):
            if grad is not None and grad.requires_grad:
                outputs.append(grad)
                cotangents.append(part.to(grad.dtype))
        watch = one.trace.statistics
        leaves: dict[str, Tensor] = {}
        if watch is not None and curvature:
            leaves = watch.leaves
            # Later layers' updates come first when walking back; a buffer moved twice decays twice.
            for update in reversed(watch.updates):
                if update.name in buffers:
                    if update.batch_statistic.requires_grad:
                        outputs.append(update.batch_statistic)
                        cotangents.append(buffers[update.name] * update.momentum)
                    buffers[update.name] = buffers[update.name] * (1 - update.momentum)
        wanted: list[Tensor] = [one.weights]
        if curvature:
            wanted += [*objective.parameters, *leaves.values()]
        results = _rows(outputs, wanted, cotangents, len(push))
        if self._share is not None:
            results = [self._share.spread(results[0], one.count), *self._over_processes(results[1:])]  # type: ignore[list-item]
        if curvature:
            count = len(objective.parameters)
            carry = carry + objective.vector.join_rows(results[1 : 1 + count]).to(carry.dtype)
            for name, value in zip(leaves, results[1 + count :], strict=True):
                buffers[name] = buffers[name] + value if name in buffers else value
        return carry, results[0]


def _rows(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], queries: int) -> list[Tensor]:
    """Vector-Jacobian products for each of ``queries`` rows of the cotangents, stacked: ``[Q, *input.shape]``."""
    if not outputs:
        return [torch.zeros(queries, *i.shape, dtype=i.dtype, device=i.device) for i in inputs]
    rows = [
        torch.autograd.grad(
            outputs, inputs, [c[q] for c in cotangents], allow_unused=True, retain_graph=q < queries - 1
        )
        for q in range(queries)
    ]
    return [
        torch.stack([torch.zeros_like(i) if x is None else x for x in column])
        for i, column in zip(inputs, zip(*rows, strict=True), strict=True)
    ]


def _length(share: RowShare | None, count: int) -> int:
    if share is None:
        return count
    rows = share.rows(count)
    return rows.stop - rows.start


def _detached(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.detach()


def _after_average(adjoint: Adjoint, step: Step) -> Adjoint:
    r"""Let the running average's adjoint act where the step fed it: ``average <- a average + b params``."""
    if step.average is None or adjoint.average is None:
        return adjoint
    a, b = step.average
    buffers = dict(adjoint.buffers)
    for name, value in adjoint.average_buffers.items():
        buffers[name] = buffers[name] + b * value if name in buffers else b * value
    return Adjoint(
        params=adjoint.params + b * adjoint.average,
        optimizer=adjoint.optimizer,
        buffers=buffers,
        average=a * adjoint.average,
        average_buffers={n: a * v for n, v in adjoint.average_buffers.items()},
    )
