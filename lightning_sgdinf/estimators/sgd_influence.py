r"""The exact derivative of the recorded run.

:math:`-\mathrm{d}q(\theta_T) / \mathrm{d}w_j` at :math:`w = 1`, over all steps, by the discrete adjoint: for plain SGD
the estimator of the reference (Algorithm 2), for any other optimizer its counterpart through that optimizer's own map.
Equal to differentiating through the whole unrolled training, to rounding.

Cost: per step one forward, one backward and, per query, one second backward pass. Needs every state (stored or
    rebuilt).

``curvature_scale`` damps the Hessian term. With ``s`` for it, each step of the walk is

.. math:: score_j \mathrel{-}= \langle\nabla l_j(\theta_t), push_t\rangle / |S_t|, \qquad
    u \leftarrow carry_t + s\,H_t\,push_t,

for plain SGD :math:`u \leftarrow u - s\,\eta_t H_t u`. What the optimizer itself does to the adjoint (momentum, weight
decay, moments, clipping) is not scaled, only what goes through the dependence of the batch's gradient (and of
BatchNorm's batch statistics) on the parameters. At 1 the result is the exact derivative, at 0 it is `NoHessian`. Any
other value is no derivative of the recorded run, and the certificate does not call it one; it is there because the
derivative of leaving out one example is not always the best ranking of examples to leave out together. Code published
with the reference divides the Hessian term by the batch size once more than its formula: with batches of one size that
is ``curvature_scale = 1 / batch size``.

Do not use it where a few percent of its cost suffice: for ranking mislabelled examples, `LastEpochs` is often enough.

References:
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (arXiv:1906.08473).
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.estimators.base import WholeRun, check_curvature_scale
from lightning_sgdinf.replay import Divisor


@dataclass(frozen=True, slots=True)
class SgdInfluence(WholeRun):
    r"""SGD-influence over all steps.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.estimators.SgdInfluence

    Attributes:
        divisor: Meaning of removal: ``"kept"``, the batch mean still divides by :math:`|S_t|` (the reference);
            ``"reduced"``, it divides by what is left, which for a mean over examples makes the slope
            :math:`\langle\nabla l_j - \bar{\nabla l}, push\rangle / |S_t|`; class weights and ignored labels count as
            they do in the loss.
        curvature_scale: Factor of the Hessian term, at least 0; 1 is the exact derivative.
    """

    divisor: Divisor = "kept"
    curvature_scale: float = 1.0

    def __post_init__(self) -> None:
        check_curvature_scale(self, self.curvature_scale)

    @property
    def exact(self) -> bool:
        """Return True for removal as counterfactual SGD defines it (divisor kept), with the Hessian term unscaled."""
        return self.divisor == "kept" and self.curvature_scale == 1

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Pull the adjoint through the whole step."""
        return at.pull(adjoint, curvature=self.curvature_scale, reduced=self.divisor == "reduced")
