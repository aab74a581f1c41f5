r"""What a counterfactual run that was taken to step ``t`` will come to: measured so far, linear from there.

.. math:: q(\theta^{-D}_T) - q(\theta_T) \approx \langle u_t, s^{-D}_t - s_t\rangle
    - \sum_{j \in D} \sum_{\tau \ge t,\, j \in S_\tau} slope_{\tau j}

with the adjoint :math:`u_t` of the recorded run at state ``t`` and the slopes of the steps that are left. At ``t = 0``
it is the influence score, at ``t = T`` the query's own linear part. Most of what an influence score misses on a network
happens in the first part of a run, where a small push decides which way it turns; so a fifth of the run tells far more
than none. One walk gives it for every ``t`` that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.ask import gradient_of
from lightning_sgdinf.adjoint.replay import ReplayedStep
from lightning_sgdinf.adjoint.vector import Adjoint
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.scoring import averaged_model
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.counterfactuals import Counterfactuals
from lightning_sgdinf.truth.plan import Plan
from lightning_sgdinf.truth.runs import Runs
from lightning_sgdinf.walk import Tally, Walk


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is needed to forecast runs that stand before one step.

    Attributes:
        adjoint: Of the state before the step.
        rest: Influence of every example over the step and those after it, float64 ``[N, Q]``.
    """

    adjoint: Adjoint
    rest: Tensor

    def of(self, runs: Runs, plan: Plan) -> Tensor:
        """The query's change at the end of each run, ``[K, Q]``, in the order of ``runs.numbers``."""
        rest = torch.stack([self.rest[list(plan.sets[i])].sum(0) for i in runs.numbers])
        return runs.departures(self.adjoint) + rest


@dataclass(frozen=True)
class _Remembering:
    """The walk of `SgdInfluence`, with the adjoint kept at chosen steps.

    Attributes:
        steps: Which steps.
        base: The estimator.
        kept: Adjoints of the states before these steps.
    """

    steps: frozenset[int]
    base: SgdInfluence
    kept: dict[int, Adjoint] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """As the estimator."""
        return self.base.exact

    def first_step(self, log: Trajectory) -> int:
        """The earliest of the chosen steps; nothing before it is needed."""
        del log
        return min(self.steps)

    def state_for(self, step: int, log: Trajectory) -> int:
        """As the estimator."""
        return self.base.state_for(step, log)

    def visit(self, at: ReplayedStep, adjoint: Adjoint) -> tuple[Adjoint, Tensor]:
        """As the estimator."""
        before, slopes = self.base.visit(at, adjoint)
        if at.step.index in self.steps:
            self.kept[at.step.index] = before
        return before, slopes


def make_forecasts(truth: Counterfactuals, steps: Sequence[int]) -> Mapping[int, Forecast]:
    """Walk back once and remember what forecasts at some steps need.

    Args:
        truth: The opened record.
        steps: Steps in ``0 .. T - 1``.

    Raises:
        SgdInfluenceError: What a walk raises.
    """
    if not steps:
        return {}
    log, objective, asking = truth.log, truth.objective, truth.asking
    wanted = frozenset(steps)
    final = log.state(len(log))

    def query_at(state: ModelState) -> Adjoint:
        return gradient_of(objective, state, asking.query, asking.data, asking.context)[1]

    _, start = gradient_of(
        objective,
        averaged_model(final, log),
        asking.query,
        asking.data,
        asking.context,
        averaged=log.average or (),
    )
    rest: dict[int, Tensor] = {}

    def on_step(t: int, before: ModelState, tally: Tally) -> None:
        del before
        if t in wanted:
            rest[t] = tally.scores.clone()

    remembering = _Remembering(wanted, SgdInfluence(divisor=truth.divisor))
    held = sum(v.numel() * v.element_size() for _, _, _, v in final.items())
    walk = Walk(
        log=log,
        objective=objective,
        estimator=remembering,
        query_at=query_at,
        room=max(3, truth.settings.room_bytes // max(held, 1)),
        compare=False,  # the run was verified
        on_step=on_step,
    )
    walk.run(start, examples=truth.examples)
    return {t: Forecast(remembering.kept[t], rest[t]) for t in wanted}
