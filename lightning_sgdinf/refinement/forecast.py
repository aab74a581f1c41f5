r"""What a counterfactual run that was taken to step ``t`` will come to: measured so far, linear from there.

.. math:: q(\theta^{-D}_T) - q(\theta_T) \approx \langle u_t, \delta\rangle
    - \sum_{j \in D} \sum_{\tau \ge t,\, j \in S_\tau} \langle\nabla l_j(\theta_\tau + \delta_\theta), push_\tau\rangle,
    \qquad \delta = s^{-D}_t - s_t,

with adjoint and push of the recorded run. At ``t = 0`` it is the influence score. Most of what an influence score
misses on a network happens in the first part of a run, where a small push decides which way it turns, so a third of a
run tells far more than none.

An influence score takes what a later step would have done with example ``j`` at the recorded parameters; here it is
taken where the run is, :math:`\delta_\theta` away, which accounts for the curvature of the example's own loss (as the
accumulative estimator does). That needs the gradient of each example by itself, one row of the batch at the parameters
of its own run. Where the loss of a batch is not the mean of its rows' losses (BatchNorm in training mode, dropout), the
recorded slopes are used.

Cost: a walk over the steps from ``t`` on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.step import AdjointStep, PulledStep, after_average
from lightning_sgdinf.checkpointing import states_in
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.log.records import MicroBatch, Step
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.replayer import Divisor
from lightning_sgdinf.scoring.walk import Walk
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.counterfactuals import Counterfactuals
from lightning_sgdinf.truth.replicas import OnePass
from lightning_sgdinf.truth.runs import Runs

SEPARATE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference between a batch's gradient and the sum of its rows', as a part of its norm."""


def forecast(truth: Counterfactuals, candidates: Sequence[Runs]) -> list[Tensor]:
    """The query's change at the end of runs that stand before the same step.

    Args:
        truth: The opened record.
        candidates: Runs of single examples.

    Returns:
        float64 ``[K, Q]`` for each, in the order of its ``numbers``.

    Raises:
        SgdInfluenceError: What a walk raises.
    """
    run, objective = truth.run, truth.run.objective
    _, start = truth.query.end(run)
    row_of: dict[int, int] = {}
    for runs in candidates:
        row_of |= {example: len(row_of) + i for i, example in enumerate(runs.numbers)}
    displaced = [runs.moved() for runs in candidates]
    moved = {n: torch.cat([part[n] for part in displaced]) for n in objective.vector.names}
    rest = _Rest(objective, candidates[0].position, truth.divisor, row_of, moved, start.queries)
    held = sum(v.numel() * v.element_size() for _, _, _, v in run.final.items())
    walk = Walk(
        run=run,
        query=truth.query,
        estimator=rest,
        max_states=states_in(run.memory_bytes, held),
        compare=False,  # the run was verified
    )
    walk.start(start)
    assert rest.adjoint is not None
    values = []
    for runs in candidates:
        rows = [row_of[i] for i in runs.numbers]
        values.append(runs.departures(rest.adjoint) + rest.values[rows])
    return values


@dataclass
class _Rest:
    """An estimator that adds up what the steps from one on would do with examples at parameters of their own.

    Attributes:
        objective: The opened model.
        first: The step.
        divisor: What removal means.
        row_of: Example to row.
        moved: How far each row's parameters lie from the recorded ones, ``[K, *shape]`` by name.
        queries: ``Q``.
        adjoint: Of the state before the first step, once the walk is done.
        values: Float64 ``[K, Q]``.
        separate: Whether rows of a batch can be differentiated by themselves; ``None`` until it was seen.
    """

    objective: Objective
    first: int
    divisor: Divisor
    row_of: Mapping[int, int]
    moved: Mapping[str, Tensor]
    queries: int
    adjoint: Adjoint | None = None
    separate: bool | None = None
    values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.values = torch.zeros(len(self.row_of), self.queries, dtype=torch.float64)
        self._base = SgdInfluence(divisor=self.divisor)

    @property
    def exact(self) -> bool:
        """Its own values are not accumulated by the walk."""
        return False

    def first_step(self, log: Trajectory) -> int:
        """Nothing before it is needed."""
        del log
        return self.first

    def state_for(self, step: int, log: Trajectory) -> int:
        """The step's own."""
        del log
        return step

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """As `SgdInfluence`; accumulates the examples that are wanted."""
        pulled = self._base.visit(at, adjoint)
        ids = at.step.example_ids.tolist()
        wanted = [i for i, example in enumerate(ids) if example in self.row_of]
        if wanted:
            own = self._displaced(at, pulled, adjoint, wanted)
            own = pulled.slopes[:, wanted] if own is None else own
            rows = torch.tensor([self.row_of[ids[i]] for i in wanted])
            self.values.index_add_(0, rows, -own.T.to("cpu", torch.float64))
        self.adjoint = pulled.adjoint
        return pulled

    def _displaced(self, at: AdjointStep, pulled: PulledStep, adjoint: Adjoint, wanted: Sequence[int]) -> Tensor | None:
        """Slopes ``[Q, len(wanted)]`` at parameters of their own; ``None`` if rows cannot be told apart."""
        if self.separate is False or self.divisor != "kept" or len(at.step.micro_batches) != 1:
            return None
        step = at.step
        rows = Rows(self.objective, step, step.micro_batches[0], at.before)
        if self.separate is None:
            self.separate = rows.are_separate()
        if not self.separate:
            return None
        which = torch.tensor([self.row_of[int(step.example_ids[i])] for i in wanted])
        gradients = rows.gradients(wanted, {n: v[which] for n, v in self.moved.items()})
        assert pulled.taken is not None
        push = pulled.taken.pull(after_average(adjoint, step))[2]
        return push @ gradients.to(push.dtype).T


class Rows:
    """The rows of a step's batch, each by itself.

    Args:
        objective: The opened model.
        step: A step of one pass.
        micro: The pass.
        state: The state before it.
    """

    def __init__(self, objective: Objective, step: Step, micro: MicroBatch, state: ModelState) -> None:
        self._objective, self._step, self._micro, self._state = objective, step, micro, state
        objective.load(state)
        objective.prepare(step)
        self._batch = objective.batch(step, micro)
        self._count = len(micro.example_ids)

    def gradients(self, positions: Sequence[int], moved: Mapping[str, Tensor]) -> Tensor:
        """What each row adds to the gradient at parameters of its own, ``[K, P]``.

        Args:
            positions: Which rows.
            moved: How far the parameters of each lie from the state's, ``[K, *shape]`` by name.
        """
        objective = self._objective
        like = objective.parameters[0]
        params = {n: (self._state.params[n].to(like) + v.to(like)).detach().requires_grad_() for n, v in moved.items()}
        leaves, structure = tree_flatten(self._batch)
        cut = [isinstance(v, Tensor) and v.ndim > 0 and v.shape[0] == self._count for v in leaves]
        own = [v[list(positions)].unsqueeze(1) for v, rows in zip(leaves, cut, strict=True) if rows]
        one = OnePass(objective, self._step, self._micro)

        count = len(positions)
        # Each row twice, with it and without: what is left without it is the penalty, which no example owns.
        weights = torch.ones(2 * count, 1, dtype=like.dtype, device=like.device)
        weights[count:] = 0

        def loss(params: dict[str, Tensor], own: list[Tensor], weights: Tensor) -> Tensor:
            rows = iter(own)
            batch: list[Any] = [next(rows) if is_cut else v for v, is_cut in zip(leaves, cut, strict=True)]
            return one.loss(params, tree_unflatten(batch, structure), weights)

        with torch.enable_grad():
            twice = {n: torch.cat([p, p]) for n, p in params.items()}
            losses = torch.func.vmap(loss, randomness="same")(twice, [torch.cat([v, v]) for v in own], weights)
            difference = losses[:count].sum() - losses[count:].sum()
            grads = torch.autograd.grad(difference, list(params.values()), allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), grads, strict=True)]
        return objective.vector.join_rows(filled) / self._count

    def are_separate(self) -> bool:
        """Whether the gradient of the batch is the sum of its rows'."""
        objective = self._objective
        like = objective.parameters[0]
        still = {n: torch.zeros(self._count, *p.shape, dtype=p.dtype) for n, p in self._state.params.items()}
        try:
            each = self.gradients(range(self._count), still).sum(0).double()
        except SgdInfluenceError:
            raise
        except Exception:  # whatever an operation of the user's can fail with in a vectorised pass of single rows
            return False
        whole = []
        for weight in (1.0, 0.0):
            weights = torch.full((self._count,), weight, dtype=like.dtype, device=like.device)
            loss = objective.trace(self._step, self._micro, self._batch, weights).loss
            grads = objective.gradient(loss)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(objective.parameters, grads, strict=True)]
            whole.append(objective.vector.join(filled).double())
        gap, size = (each - (whole[0] - whole[1])).norm(), (whole[0] - whole[1]).norm()
        return bool(gap <= SEPARATE.get(like.dtype, 1e-2) * size)
