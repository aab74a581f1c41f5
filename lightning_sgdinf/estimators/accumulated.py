r"""The leave-one-out run, linearised (ACC-SGD-IE).

Leaving example ``j`` out makes every step another map, :math:`\Phi_t^{-j}`: that of the gradient without :math:`\nabla
l_j`. Its run, linearised around the recorded one, moves the state by

.. math:: \Delta_{t+1} = \Phi_t^{-j}(s_t) - \Phi_t(s_t) + D\Phi_t^{-j}(s_t)\,\Delta_t, \qquad \Delta_0 = 0,

which for plain SGD is :math:`\Delta \leftarrow (I - \eta H_t)\Delta + [j \in S_t]\,\frac{\eta}{|S_t|}(\nabla l_j +
\nabla^2 l_j\,\Delta)`. The last term is what `SgdInfluence` lacks: it differentiates at full weight, so that at a later
occurrence of ``j`` its curvature still counts the example. Equal to real removal for a quadratic loss under an
optimizer that is linear in the gradient (SGD with momentum, weight decay ...).

Works forwards, with one state per example that has been drawn: ``[N, P]`` numbers and as many again for each tensor
of the optimizer. Examples that do not fit into the runner's ``memory_bytes`` together take several passes over the run.
Cost of a step: one Hessian-vector product per example drawn so far, and two more per example of the batch. For small
models.

Not for models with BatchNorm in training mode (running statistics are not carried), nor for averaged weights.

References:
    Shi et al., "Accumulative SGD Influence Estimation for Data Attribution", 2025 (arXiv:2510.26185).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import (
    BoundQuery,
    FirstOrder,
    LinearStep,
    Tangent,
    UpdateRule,
    difference,
    hessian_rows,
    own_gradients,
    own_hessian_rows,
    rule_for,
    take_step,
    touched_elements,
)
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError, UnsupportedRunError
from lightning_sgdinf.estimators.direct import Estimate
from lightning_sgdinf.log import MicroBatch, Step, Trajectory
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.replay import (
    Objective,
    OpenedRun,
    Rebuild,
    Rebuilder,
    refuse_changes,
    stored_at_or_before,
)
from lightning_sgdinf.state import ModelState

logger = printable_logger(__name__)


@dataclass(frozen=True, slots=True)
class AccumulatedInfluence:
    """The leave-one-out run, linearised; see the module's text.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.estimators.AccumulatedInfluence

    Attributes:
        evaluate: Ask the query of each displaced model, rather than multiply the displacement with the query's
            gradient: one pass over the validation set per example, and nearer to the truth where the query bends.
        max_passes: Refuse if the states of all examples need more passes over the run than that to fit into memory, at
            least 1.
    """

    evaluate: bool = False
    max_passes: int = 32

    def __post_init__(self) -> None:
        if self.max_passes < 1:
            raise ConfigurationError(
                f"AccumulatedInfluence(max_passes): expected a number of at least 1, got {self.max_passes}"
            )

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Take one forward pass over the run for as many examples as fit into memory, until all are done.

        Raises:
            ConfigurationError: The states do not fit into memory; says how much they need.
            UnsupportedRunError: A run whose state is more than parameters and optimizer.
            StepMismatchError: A state that is not stored cannot be rebuilt.
            NonFiniteError: A state is no longer finite; names the step.
        """
        log, objective = run.log, run.objective
        if log.average is not None:
            raise UnsupportedRunError(
                "AccumulatedInfluence does not carry running averages of the weights, which this run has; use "
                "SgdInfluence, or train without averaging"
            )
        first = first_steps(log, run.examples)
        order = torch.argsort(first, stable=True)[: int((first < len(log)).sum())]
        note, size = self._plan(run, len(order))
        values = torch.zeros(run.examples, len(query.names), dtype=torch.float64)
        changes = evaluated_changes if self.evaluate else linear_changes
        for chunk in order.split(size):
            values[chunk] = changes(run, query, displacements(log, objective, chunk, first[chunk], run.rebuild))
        return Estimate(values, (note,))

    def _plan(self, run: OpenedRun, count: int) -> tuple[str, int]:
        """Return a note on the memory needed, logged before it is taken, and the number of examples done at once."""
        state = run.final
        tensors = 1 + max(
            (sum(v.shape == state.params[n].shape for v in s.values()) for n, s in state.optimizer.items()), default=0
        )
        example_bytes = run.objective.parameters[0].element_size() * run.objective.vector.size * (2 * tensors + 2)
        size = min(count, run.memory_bytes // example_bytes)
        passes = -(-count // size) if size else 0
        if not 1 <= passes <= self.max_passes:
            raise ConfigurationError(
                f"AccumulatedInfluence: {count:,} examples of {run.objective.vector.size:,} parameters need "
                f"{count * example_bytes / 2**30:.1f} GiB at once; with memory_bytes={run.memory_bytes:,} they would "
                f"take {-(-count * example_bytes // run.memory_bytes):,} passes over the run, and max_passes is "
                f"{self.max_passes}. Give InfluenceRunner more memory_bytes, or use SgdInfluence."
            )
        note = (
            f"One state per example, {count * example_bytes / 2**20:.1f} MiB in all: {size:,} examples at once, "
            f"{passes} pass{'es' if passes > 1 else ''} over the run."
        )
        logger.info("AccumulatedInfluence: %s", note)
        return note, size


def linear_changes(run: OpenedRun, query: BoundQuery, moved: Tensor) -> Tensor:
    """Return the changes of the queries to first order, float64 ``[J, Q]``, for parameters displaced by ``[J, P]``."""
    return (moved.double() @ query.at_model(run)[1].params.double().T).cpu()


def evaluated_changes(run: OpenedRun, query: BoundQuery, moved: Tensor) -> Tensor:
    """Return the changes of the queries themselves, float64 ``[J, Q]``, for parameters displaced by ``[J, P]``."""
    vector, model = run.objective.vector, run.model
    base = query.value(model)
    end = vector.join([model.params[n] for n in vector.names]).to(moved)
    changes = []
    for row in moved:
        params = dict(zip(vector.names, vector.split(end + row), strict=True))
        changes.append(query.value(ModelState(params=params, buffers=model.buffers)) - base)
    return torch.stack(changes)


def displacements(
    log: Trajectory, objective: Objective, examples: Tensor, first: Tensor, rebuild: Rebuild = "exact"
) -> Tensor:
    """Return the displacement of the linearised leave-one-out runs' final parameters from the recorded ones.

    Args:
        log: The record.
        objective: The opened model.
        examples: Ids, int64 ``[J]``, in the order of their first steps.
        first: Their `first_steps`, increasing.
        rebuild: How states that were not stored are rebuilt.

    Returns:
        ``[J, P]``.
    """
    rule = rule_for(log.header.optimizer)
    like = objective.parameters[0]
    tangent = Tangent(like.new_zeros(len(examples), objective.vector.size).detach())
    row_of = {int(j): row for row, j in enumerate(examples)}
    start = int(first[0])
    begun = 0
    for step, before in _forwards(log, objective, start, rebuild):
        if step.index > start:
            refuse_changes(step)
        known, begun = begun, int((first <= step.index).sum())
        moved = _advance(objective, rule, step, before, tangent, row_of, known, begun)
        if not bool(torch.isfinite(moved.params.sum())):
            raise NonFiniteError(
                f"the linearised run is no longer finite after step {step.index}: the run amplifies small changes "
                "without bound there, so no influence is defined. Use fewer steps or a smaller step size."
            )
        tangent = _written(tangent, moved, begun)
    return tangent.params


def _advance(
    objective: Objective,
    rule: UpdateRule,
    step: Step,
    before: ModelState,
    tangent: Tangent,
    row_of: dict[int, int],
    known: int,
    begun: int,
) -> Tangent:
    """Take a step with the first ``begun`` rows, of which ``known`` had departed from the recorded run before."""
    vector, device = objective.vector, objective.host.device
    if device.type != "cpu":
        before = before.map(lambda v: v.to(device) if v.ndim else v)  # counters stay where optimizers want them
    objective.load(before)
    objective.passes.sparse_rows.clear()
    grads: list[Tensor | None] = [None] * len(objective.parameters)
    rows = tangent.rows(slice(0, begun))
    change: Tensor | None = None
    example_gradients: dict[int, Tensor] = {}
    for micro in step.micro_batches:
        first = _traced(objective, step, micro, objective.batch(step, micro))
        grads = [_sum(a, b) for a, b in zip(grads, first.grads, strict=True)]
        bent = hessian_rows(objective, first, rows.params[:known]) if known else rows.params[:0]
        if known < begun:  # those that leave the recorded run at this step have not moved yet
            bent = torch.cat([bent, bent.new_zeros(begun - known, vector.size)])
        change = bent if change is None else change.add_(bent)
        drawn = [(i, row_of[j]) for i, j in enumerate(micro.example_ids.tolist()) if j in row_of]
        if not drawn:
            continue
        positions, drawn_rows = (torch.tensor(v, device=change.device) for v in zip(*drawn, strict=True))
        gradients = own_gradients(objective, first, positions)
        for row, gradient in zip(drawn_rows.tolist(), gradients, strict=True):
            example_gradients[row] = example_gradients[row] + gradient if row in example_gradients else gradient
        departed = drawn_rows < known
        if bool(departed.any()):
            less = own_hessian_rows(objective, first, positions[departed], rows.params[drawn_rows[departed]])
            change.index_add_(0, drawn_rows[departed], less, alpha=-1)
    assert change is not None
    touched = touched_elements(rule, objective, list)
    taken = take_step(rule, vector, before, grads, step, touched)
    if not rule.needs_gradient and step.clip is None:  # the step is linear in the gradient
        for row, gradient in example_gradients.items():
            change[row] -= gradient
        return LinearStep(taken).push(rows, change)
    after = LinearStep(taken).push(rows, change)
    for row, gradient in example_gradients.items():
        left = [_less(g, part) for g, part in zip(grads, vector.split(gradient), strict=True)]
        other = take_step(rule, vector, before, left, step, touched)
        here = slice(row, row + 1)
        bent, gap = LinearStep(other).push(rows.rows(here), change[here]), difference(other, taken)
        after.params[here] = bent.params + gap.params
        for key, value in after.optimizer.items():
            value[here] = bent.optimizer[key] + gap.optimizer[key]
    return after


def _traced(objective: Objective, step: Step, micro: MicroBatch, batch: Any) -> FirstOrder:
    like = objective.parameters[0]
    weights = torch.ones(len(micro.example_ids), dtype=like.dtype, device=like.device, requires_grad=True)
    trace = objective.trace(step, micro, batch, weights, statistics=True)
    if trace.statistics is not None and trace.statistics.updates:
        raise UnsupportedRunError(
            f"AccumulatedInfluence carries parameters and optimizer state, not the running statistics that "
            f"{trace.statistics.updates[0].name!r} is one of; use SgdInfluence, or a model without BatchNorm"
        )
    return FirstOrder(trace.loss, weights, None, objective.gradient(trace.loss, create_graph=True, noted=True))


def _written(tangent: Tangent, moved: Tangent, begun: int) -> Tangent:
    """Replace the first rows; optimizer state appears with the first step that has some."""
    tangent.params[:begun] = moved.params
    optimizer = {k: tangent.optimizer.get(k, torch.zeros_like(tangent.params)) for k in moved.optimizer}
    for key, value in moved.optimizer.items():
        optimizer[key][:begun] = value
    return Tangent(tangent.params, optimizer)


def first_steps(log: Trajectory, examples: int) -> Tensor:
    """Return the step at which each example is drawn first, int64 ``[N]``; ``T`` if never."""
    first = torch.full((examples,), len(log))
    for step in log.steps(len(log), 0):
        first[torch.tensor(step.example_ids)] = step.index
    return first


def _forwards(log: Trajectory, objective: Objective, start: int, rebuild: Rebuild) -> Iterator[tuple[Step, ModelState]]:
    """Yield steps and the states they were taken from; states that are not stored are rebuilt."""
    stored = set(log.state_indices.tolist())
    begin = since = stored_at_or_before(log, start)
    rebuilder, state, previous = Rebuilder(log, objective, rebuild), log.state(begin), None
    for step in log.steps(begin, len(log)):
        if previous is not None and step.index in stored:
            if since < previous.index:
                rebuilder.arrive(since, state, previous)
            state, since = log.state(step.index), step.index
        elif previous is not None:
            state = rebuilder.advance(state, previous)
        previous = step
        if step.index >= start:
            yield step, state


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if b is None:
        return a
    return b.detach() if a is None else a + b.detach()


def _less(grad: Tensor | None, part: Tensor) -> Tensor | None:
    return None if grad is None else grad - part
