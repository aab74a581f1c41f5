r"""One recorded step, taken again so that it can be differentiated.

With ``s`` the state, :math:`g = \sum_i w_i \nabla l_i(\theta)` the gradient and :math:`s' = \Phi(s, g)` the step, an
adjoint ``u`` of ``s'`` is pulled back to one of ``s``, and the slopes of the batch's examples fall out:

.. math:: (carry, push) = (\partial\Phi)^T u, \qquad slope_j = \langle \nabla l_j, push\rangle, \qquad
    u_\theta = carry_\theta + H\,push.

Slopes and Hessian-vector product come from one differentiation of :math:`\langle g(w, \theta), push\rangle`. Cost per
step: one forward pass, one backward pass with graph, and per query one pass through both. With gradient accumulation
the push needs the sum of all gradients first, where the rule depends on it; then there is one more forward and backward
pass.

What reaches the parameters through the model's pass (:math:`H\,push`, and BatchNorm's batch statistics) can be scaled
by a number ``s``: :math:`u_\theta = carry_\theta + s\,H\,push`. That is the derivative of a run whose passes see
:math:`\bar\theta_t + s\,(\theta - \bar\theta_t)`, with :math:`\bar\theta_t` the recorded parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.compiled import CompiledSteps, Kernel, KernelPass
from lightning_sgdinf.adjoint.optim.base import UpdateRule
from lightning_sgdinf.adjoint.optim.step import TakenStep, take_step, touched_elements
from lightning_sgdinf.adjoint.second_order import FirstOrder, Products, differentiate
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay import Objective, RowShards
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.replay.training_step import Trace
from lightning_sgdinf.state import ModelState

CHECKS = 2
"""Comparisons of each compiled kernel with the eager one before it is trusted (until the epoch's end)."""

FACTORS = tuple(2.0**k for k in range(-5, 6))
"""Multiples of a change that rounding may explain; several, since a step of Adam may be longest in between."""

TOGETHER = 4
"""From how many queries on vectorising pays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledStep:
    """A step pulled back through, with everything that was computed on the way.

    Attributes:
        adjoint: Of the state before the step.
        slopes: The derivative of each query in the weight of each example of the step, ``[Q, B]``, in the order of
            ``step.example_ids``.
        taken: The optimizer step taken with the gradient at that state; ``None`` if none was, or it is settled.
        buffers: The module's buffers after the step, by name.
        unreached: What no example's weight reached of the gradient along the push, ``<g, push> - sum_j slope_j``, as a
            part of ``|g| |push|``: the largest of all queries. Of losses that divide by what is left, ``sum_j slope_j``
            alone: one factor for all weights changes nothing in them. ``None`` if it is not known.
        structures: Of its passes, in the order of its micro-batches; empty if they were not looked at.
        loss: Of its last pass, as recorded losses are; ``None`` if it is not known.
    """

    adjoint: Adjoint
    slopes: Tensor
    taken: TakenStep | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    unreached: float | None = None
    structures: tuple[PassStructure, ...] = ()
    loss: Tensor | None = None


Settle = Callable[[TakenStep, Mapping[str, Tensor]], bool]


class AdjointStep:
    """A step at the state it is to be differentiated at.

    Attributes:
        step: The record.
        before: The state.
        is_epoch_end: Whether it is the last step of its epoch.

    ``settle`` is shown the step taken, and the buffers after it, before the second derivatives, which need much memory;
    if it returns true, nobody wants to see it later.
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
        shards: RowShards | None = None,
        compiled: CompiledSteps | None = None,
        settle: Settle | None = None,
    ) -> None:
        self.step = step
        self.before = before
        self.is_epoch_end = is_epoch_end
        self._objective = objective
        self._rule = rule
        self._query_at = query_at
        self._shards = shards
        self._compiled = compiled if shards is None else None
        self._settle = settle
        self._batch: Any = None
        self._reduced = False

    def query_gradient(self) -> Adjoint:
        """Return the gradient of the queries at this very state, for methods that take it anew along the way."""
        return self._query_at(self.before)

    def pull(self, adjoint: Adjoint, *, curvature: float = 1.0, reduced: bool = False) -> PulledStep:
        """Pull an adjoint of the state after the step back to the state before it.

        Args:
            adjoint: Of the state after the step.
            curvature: What the Hessian-vector product is multiplied by; at 0 it is not computed, and only the
                optimizer's own part moves the adjoint.
            reduced: Slopes are of losses that divide by what is left of the batch.

        Raises:
            NonFiniteError: If the result is not finite; names the step.
        """
        adjoint = after_average(adjoint, self.step)
        self._objective.passes.sparse_rows.clear()
        self._objective.load(self.before)
        self._reduced = reduced
        self._batch = None
        kernel = self._kernel(adjoint) if curvature and not reduced else None
        if kernel is None:
            pulled = self._pull(adjoint, curvature, settle=self._settle)
        else:
            pulled = self._pull_by(kernel, adjoint, curvature)
        if not bool(torch.isfinite(pulled.adjoint.params.sum() + pulled.slopes.sum())):
            raise NonFiniteError(
                f"the adjoint is no longer finite at step {self.step.index}: the run amplifies small changes without "
                "bound there (a learning rate at the edge of divergence), so no influence is defined. Use fewer steps "
                "(last_epochs) or a smaller step size."
            )
        return pulled

    def rounded(self, *, tries: int = 4, factors: Sequence[float] = FACTORS) -> list[TakenStep]:
        """Take the step with gradients that differ by some times what rounding the parameters does to each element.

        Args:
            tries: How often the gradient is taken at parameters that are rounded otherwise.
            factors: The largest change of an element in these tries is added and subtracted this many times.
        """
        objective, gradients = self._objective, []
        for number in range(tries + 1):
            objective.load(self.before)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in objective.parameters:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.mul_(1 + (number > 0) * torch.finfo(parameter.dtype).eps * noise)
            grads, _ = self._sum_gradients(self.step.micro_batches)
            gradients.append(self._over_processes([_detached(g) for g in grads]))
        objective.load(self.before)
        taken = []
        for sign in (sign * factor for factor in factors for sign in (-1, 1)):
            moved: list[Tensor | None] = []
            for here, *others in zip(*gradients, strict=True):
                changes = [(g - here).abs() for g in others if g is not None and here is not None]
                moved.append(here if here is None or not changes else here + sign * torch.stack(changes).amax(0))
            taken.append(self._take(moved))
        return taken

    def _pull(
        self, adjoint: Adjoint, curvature: float, kernel: Kernel | None = None, *, settle: Settle | None
    ) -> PulledStep:
        micros, objective = self.step.micro_batches, self._objective
        single: list[FirstOrder | KernelPass] = []
        traces: list[Trace] = []
        passes: list[tuple[MicroBatch, Any, dict[str, Tensor]]] = []
        if len(micros) == 1:
            single.append(self._first(micros[0], traces, kernel))
            grads: Sequence[Tensor | None] = single[0].grads
        else:
            grads, passes = self._sum_gradients(micros)
        buffers_after = objective.read_buffers()
        grads = self._over_processes([_detached(g) for g in grads])
        taken = self._take(grads)
        settled: TakenStep | None = taken
        if settle is not None and settle(taken, buffers_after):
            settled, taken = None, taken.only_pull()
        carry, state, push = taken.pull(adjoint)
        push = objective.vanishing.held(grads, push, objective.vector)
        reached = self._along(grads, push)
        del grads, taken  # of the size of the model, each
        buffers = dict(adjoint.buffers)
        slopes: list[Tensor] = []
        if single:
            carry, buffers, part = self._differentiate(
                single.pop(), len(micros[0].example_ids), push, carry, buffers, curvature
            )
            slopes.append(part)
        while passes:
            micro, batch, before = passes.pop()
            objective.load_buffers(before)
            carry, buffers, part = self._differentiate(
                self._trace(micro, batch, traces), len(micro.example_ids), push, carry, buffers, curvature
            )
            slopes.insert(0, part)
        joined = torch.cat(slopes, dim=1) if len(slopes) > 1 else slopes[0]
        return PulledStep(
            adjoint=replace(adjoint, params=carry, optimizer=state, buffers=buffers),
            slopes=joined,
            taken=settled,
            buffers=buffers_after,
            unreached=None if reached is None else _unreached(*reached, joined),
            structures=_structures(traces) if kernel is None else kernel.structures,
            loss=traces[0].loss.detach() * self.step.accumulation if traces and self._shards is None else None,
        )

    def _kernel(self, adjoint: Adjoint) -> Kernel | None:
        """Return what takes the place of the eager kernel, if something does."""
        compiled, objective = self._compiled, self._objective
        if compiled is None or compiled.note or len(self.step.micro_batches) != 1 or getattr(self._rule, "lazy", False):
            return None
        micro = self.step.micro_batches[0]
        if micro.without_loss:
            return None
        self._batch = objective.batch(self.step, micro)
        return compiled.kernel(self.step, micro, self._batch, adjoint.buffers, adjoint.queries)

    def _pull_by(self, kernel: Kernel, adjoint: Adjoint, curvature: float) -> PulledStep:
        """Pull back by a kernel; compare it with the eager one if it is new, or an epoch has passed."""
        if kernel.checks >= CHECKS and not self.is_epoch_end:
            return self._pull(adjoint, curvature, kernel, settle=self._settle)
        kernel.checks += 1
        expected = self._pull(adjoint, curvature, settle=None)
        kernel.structures = expected.structures
        self._objective.load_buffers(self.before.buffers)
        pulled = self._pull(adjoint, curvature, kernel, settle=self._settle)
        if worst := _disagreement(pulled, expected, self._objective.parameters[0].dtype):
            assert self._compiled is not None
            self._compiled.give_up(f"at step {self.step.index} the compiled kernel's {worst}")
            return expected
        return pulled

    def _along(self, grads: Sequence[Tensor | None], push: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what slopes add up to (0 where losses divide by what is left) and ``|g| |push|``; not of shards."""
        if self._shards is not None:
            return None
        expected, size = self._objective.vector.project(grads, push)
        return torch.zeros_like(expected) if self._reduced else expected, size * push.norm(dim=1)

    def _take(self, grads: Sequence[Tensor | None]) -> TakenStep:
        grads = self._objective.vanishing.restored(self.step, grads)
        touched = touched_elements(self._rule, self._objective, self._over_processes)
        return take_step(self._rule, self._objective.vector, self.before, grads, self.step, touched)

    def _first(self, micro: MicroBatch, traces: list[Trace], kernel: Kernel | None) -> FirstOrder | KernelPass:
        batch = self._objective.batch(self.step, micro) if self._batch is None else self._batch
        if kernel is None:
            return self._trace(micro, batch, traces)
        assert self._compiled is not None
        self._objective.prepare(self.step, micro)
        return self._compiled.begin(kernel, self.step, micro, batch)

    def _trace(self, micro: MicroBatch, batch: Any, traces: list[Trace]) -> FirstOrder:
        objective = self._objective
        count = len(micro.example_ids)
        own, fraction = _own_rows(self._shards, batch, count)
        how: dict[str, Any] = {"dtype": objective.parameters[0].dtype, "device": objective.host.device}
        weights = torch.ones(_length(self._shards, count), requires_grad=True, **how)
        trace = objective.trace(self.step, micro, own, weights, statistics=True, reduced=self._reduced)
        traces.append(trace)
        loss = trace.loss if fraction == 1 else trace.loss * fraction
        return FirstOrder(
            loss, weights, trace.statistics, objective.gradient(loss, create_graph=True, noted=True), trace.moved
        )

    def _over_processes(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return list(tensors) if self._shards is None else self._shards.sum(tensors)

    def _sum_gradients(
        self, micros: Sequence[MicroBatch]
    ) -> tuple[list[Tensor | None], list[tuple[MicroBatch, Any, dict[str, Tensor]]]]:
        objective = self._objective
        total: list[Tensor | None] = [None] * len(objective.parameters)
        passes: list[tuple[MicroBatch, Any, dict[str, Tensor]]] = []
        for micro in micros:
            batch = objective.batch(self.step, micro)
            passes.append((micro, batch, objective.read_buffers()))
            own, fraction = _own_rows(self._shards, batch, len(micro.example_ids))
            grads = objective.gradient(objective.trace(self.step, micro, own).loss * fraction, noted=True)
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, grads, strict=True)]
        return total, passes

    def _differentiate(
        self,
        first: FirstOrder | KernelPass,
        count: int,
        push: Tensor,
        carry: Tensor,
        buffers: Mapping[str, Tensor],
        curvature: float,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return carry with the scaled ``H push`` added, adjoints of the buffers before the pass, slopes ``[Q, B]``."""
        objective = self._objective
        if isinstance(first, KernelPass):
            products = first.products(push, buffers)
        else:
            products = self._products(first, objective.vector.split(push), buffers, curvature != 0)
        del first
        if self._shards is not None:
            names = list(products.statistics)
            slopes = self._shards.scatter(products.slopes, count)
            summed = self._over_processes([*products.hessian, *products.statistics.values()])
            hessian, rest = summed[: len(products.hessian)], summed[len(products.hessian) :]
            products = Products(slopes, hessian, dict(zip(names, rest, strict=True)), products.buffers)  # type: ignore[arg-type]
        if products.hessian:
            carry = objective.vector.plus_rows(carry, products.hessian, curvature)
        return carry, products.buffers_before(), products.slopes

    def _products(
        self, first: FirstOrder, pushes: Sequence[Tensor], buffers: Mapping[str, Tensor], curvature: bool
    ) -> Products:
        objective = self._objective
        if objective.queries_together and len(pushes[0]) >= TOGETHER:
            try:
                return differentiate(first, objective.parameters, pushes, buffers, curvature=curvature, together=True)
            except (RuntimeError, NotImplementedError, ValueError):
                # An operation that cannot be vectorised, such as an autograd.Function of the user's.
                objective.queries_together = False
        return differentiate(first, objective.parameters, pushes, buffers, curvature=curvature)


def _disagreement(compiled: PulledStep, eager: PulledStep, dtype: torch.dtype) -> str:
    """Say what differs by more than rounding; empty if nothing does."""
    allowed = 1e-9 if dtype == torch.float64 else 1e-3
    pairs = (("adjoint", compiled.adjoint.params, eager.adjoint.params), ("slopes", compiled.slopes, eager.slopes))
    for name, a, b in pairs:
        gap = float((a - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))
        if not gap <= allowed:
            return f"{name} differs by {gap:.1e} of its norm (allowed {allowed:.0e})"
    return ""


def _unreached(along: Tensor, size: Tensor, slopes: Tensor) -> float:
    """See `PulledStep`."""
    gap = (along - slopes.sum(dim=1)).abs()
    return float((gap / size.clamp_min(torch.finfo(size.dtype).tiny)).max())


def _own_rows(shards: RowShards | None, batch: Any, count: int) -> tuple[Any, float]:
    """Return this process's part of a batch, and its share of the loss."""
    return (batch, 1.0) if shards is None else (shards.part(batch, count), shards.fraction(count))


def _length(shards: RowShards | None, count: int) -> int:
    if shards is None:
        return count
    rows = shards.rows(count)
    return rows.stop - rows.start


def _structures(traces: Sequence[Trace]) -> tuple[PassStructure, ...]:
    return tuple(t.structure for t in reversed(traces) if t.structure is not None)


def _detached(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.detach()


def after_average(adjoint: Adjoint, step: Step) -> Adjoint:
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
