r"""The exact derivative of the recorded run.

:math:`-\mathrm{d}q(\theta_T) / \mathrm{d}w_j` at :math:`w = 1`, over all steps, by the discrete adjoint: for plain SGD
the estimator of the reference (Algorithm 2), for any other optimizer its counterpart through that optimizer's own map.
Equal to differentiating through the whole unrolled training, to rounding.

Cost: per step one forward, one backward and, per query, one second backward pass. Needs every state (stored or
    rebuilt).

Do not use it where a few percent of its cost suffice: for ranking mislabelled examples, `LastEpochs` is often enough.

References:
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (arXiv:1906.08473).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.replay import ReplayedStep
from lightning_sgdinf.adjoint.retrace import Divisor
from lightning_sgdinf.adjoint.vector import Adjoint
from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class SgdInfluence:
    r"""SGD-influence over all steps.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.estimators.SgdInfluence

    Attributes:
        divisor: What removal means: ``"kept"``, the batch mean still divides by :math:`|S_t|` (the reference);
            ``"reduced"``, it divides by what is left, which for a mean loss makes the slope :math:`\langle\nabla l_j -
            \bar{\nabla l}, push\rangle / |S_t|`.
    """

    divisor: Divisor = "kept"

    @property
    def exact(self) -> bool:
        """Yes, for removal as counterfactual SGD defines it (divisor kept)."""
        return self.divisor == "kept"

    def first_step(self, log: Trajectory) -> int:
        """All steps."""
        del log
        return 0

    def state_for(self, step: int, log: Trajectory) -> int:
        """The step's own."""
        del log
        return step

    def visit(self, at: ReplayedStep, adjoint: Adjoint) -> tuple[Adjoint, Tensor]:
        """Pull the adjoint through the whole step."""
        before, slopes = at.pull(adjoint)
        return before, slopes if self.divisor == "kept" else centred(slopes, at.step)


def centred(slopes: Tensor, step: Step) -> Tensor:
    """Slopes less their mean over each micro-batch: the derivative of a weighted mean that divides by the sum of
    weights."""
    parts = slopes.split([len(m.example_ids) for m in step.micro_batches], dim=1)
    return torch.cat([p - p.mean(dim=1, keepdim=True) for p in parts], dim=1)
