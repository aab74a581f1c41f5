r"""The end of a counterfactual run that was taken to step ``t``, forecast: measured so far, linear from there.

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

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep, after_average
from lightning_sgdinf.checkpointing import states_in
from lightning_sgdinf.curvature.products import zeros_for_none
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.estimators.base import WholeRun
from lightning_sgdinf.log import MicroBatch, Step, Trajectory
from lightning_sgdinf.replay import Divisor, Objective
from lightning_sgdinf.scoring import Walk
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth import Counterfactuals
from lightning_sgdinf.truth.replicas import OnePass
from lightning_sgdinf.truth.runs import Runs

SEPARATE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference between a batch's gradient and the sum of its rows', as a part of its norm."""


def forecast(truth: Counterfactuals, candidates: Sequence[Runs]) -> list[Tensor]:
    """Forecast the query's change at the end of runs that stand before the same step.

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
    parts = [runs.displacement() for runs in candidates]
    displacement = {n: torch.cat([part[n] for part in parts]) for n in objective.vector.names}
    estimator = _DisplacedInfluence(
        objective, candidates[0].position, truth.divisor, row_of, displacement, start.queries
    )
    state_bytes = sum(v.numel() * v.element_size() for _, _, _, v in run.final.items())
    walk = Walk(
        run=run,
        query=truth.query,
        estimator=estimator,
        max_states=states_in(run.memory_bytes, state_bytes),
        compare=False,  # the run was verified
        keeps_taken=True,
    )
    walk.start(start)
    assert estimator.adjoint is not None
    values = []
    for runs in candidates:
        rows = [row_of[i] for i in runs.numbers]
        values.append(runs.departures(estimator.adjoint) + estimator.values[rows])
    return values


@dataclass
class _DisplacedInfluence(WholeRun):
    """An estimator that accumulates the slopes of examples from a step on, each at displaced parameters.

    Attributes:
        objective: The opened model.
        first: The step.
        divisor: Of the losses of a batch.
        row_of: Example to row.
        displacement: Of each row's parameters from the recorded ones, ``[K, *shape]`` by name.
        queries: ``Q``.
        adjoint: Of the state before the first step, once the walk is done.
        values: Float64 ``[K, Q]``.
        separate: True if rows of a batch can be differentiated by themselves; ``None`` until it was tried.
        exact: False: the walk does not accumulate its values.
    """

    objective: Objective
    first: int
    divisor: Divisor
    row_of: Mapping[int, int]
    displacement: Mapping[str, Tensor]
    queries: int
    adjoint: Adjoint | None = None
    separate: bool | None = None
    values: Tensor = field(init=False)
    exact = False

    def __post_init__(self) -> None:
        self.values = torch.zeros(len(self.row_of), self.queries, dtype=torch.float64)
        self._base = SgdInfluence(divisor=self.divisor)

    def first_step(self, log: Trajectory) -> int:
        """Return the step before which the runs stand."""
        del log
        return self.first

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Pull as `SgdInfluence`, and accumulate the slopes of the wanted examples."""
        pulled = self._base.visit(at, adjoint)
        ids = at.step.example_ids.tolist()
        wanted = [i for i, example in enumerate(ids) if example in self.row_of]
        if wanted:
            slopes = self._displaced_slopes(at, pulled, adjoint, wanted)
            slopes = pulled.slopes[:, wanted] if slopes is None else slopes
            rows = torch.tensor([self.row_of[ids[i]] for i in wanted])
            self.values.index_add_(0, rows, -slopes.T.to("cpu", torch.float64))
        self.adjoint = pulled.adjoint
        return pulled

    def _displaced_slopes(
        self, at: AdjointStep, pulled: PulledStep, adjoint: Adjoint, wanted: Sequence[int]
    ) -> Tensor | None:
        """Compute slopes ``[Q, len(wanted)]`` at displaced parameters; ``None`` if rows cannot be told apart."""
        if self.separate is False or self.divisor != "kept" or len(at.step.micro_batches) != 1:
            return None
        step = at.step
        rows = Rows(self.objective, step, step.first_pass, at.before)
        if self.separate is None:
            self.separate = rows.are_separate()
        if not self.separate:
            return None
        positions = torch.tensor([self.row_of[int(step.example_ids[i])] for i in wanted])
        gradients = rows.gradients(wanted, {n: v[positions] for n, v in self.displacement.items()})
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
        objective.prepare(step, micro)
        self._batch = objective.batch(step, micro)
        self._count = len(micro.example_ids)

    def gradients(self, positions: Sequence[int], displacement: Mapping[str, Tensor]) -> Tensor:
        """Compute each row's contribution to the gradient, at displaced parameters, ``[K, P]``.

        Args:
            positions: Of the rows in the batch.
            displacement: Of the parameters of each from the state's, ``[K, *shape]`` by name.
        """
        objective = self._objective
        like = objective.parameters[0]
        params = {
            n: (self._state.params[n].to(like) + v.to(like)).detach().requires_grad_() for n, v in displacement.items()
        }
        leaves, structure = tree_flatten(self._batch)
        cut = [isinstance(v, Tensor) and v.ndim > 0 and v.shape[0] == self._count for v in leaves]
        sliced = [v[list(positions)].unsqueeze(1) for v, is_cut in zip(leaves, cut, strict=True) if is_cut]
        forward_pass = OnePass(objective, self._step, self._micro)

        count = len(positions)
        # Each row twice, at weight 1 and 0: the loss at weight 0 is the penalty, which no example owns.
        weights = torch.ones(2 * count, 1, dtype=like.dtype, device=like.device)
        weights[count:] = 0

        def loss(params: dict[str, Tensor], sliced: list[Tensor], weights: Tensor) -> Tensor:
            rows = iter(sliced)
            batch: list[Any] = [next(rows) if is_cut else v for v, is_cut in zip(leaves, cut, strict=True)]
            return forward_pass.loss(params, tree_unflatten(batch, structure), weights)

        with torch.enable_grad():
            twice = {n: torch.cat([p, p]) for n, p in params.items()}
            losses = torch.func.vmap(loss, randomness="same")(twice, [torch.cat([v, v]) for v in sliced], weights)
            difference = losses[:count].sum() - losses[count:].sum()
            grads = torch.autograd.grad(difference, list(params.values()), allow_unused=True)
        return objective.vector.join_rows(zeros_for_none(grads, list(params.values()))) / self._count

    def are_separate(self) -> bool:
        """Return whether the gradient of the batch is the sum of its rows'."""
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
            whole.append(objective.vector.join(zeros_for_none(grads, objective.parameters)).double())
        gap, size = (each - (whole[0] - whole[1])).norm(), (whole[0] - whole[1]).norm()
        return bool(gap <= SEPARATE.get(like.dtype, 1e-2) * size)
