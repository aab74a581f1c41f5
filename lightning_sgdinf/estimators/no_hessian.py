r"""SGD-influence without its Hessian term.

The adjoint is moved by the optimizer's own part only (momentum, weight decay, moments), never by :math:`H_t\,push`. For
plain SGD it stays the query's gradient at the end of the run, and the score is :math:`\sum_t (\eta_t/|S_t|)
\langle\nabla q(\theta_T), \nabla l_j(\theta_t)\rangle`: ``nohess`` in the reference code.

It is `SgdInfluence` with ``curvature_scale=0``, by its own name.

Cost: a little less than the exact walk, since the second pass stops at the weights. Not recommended beyond comparison:
it ignores that later steps amplify or damp an early change.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.estimators.base import WholeRun


@dataclass(frozen=True, slots=True)
class NoHessian(WholeRun):
    """SGD-influence with the Hessian-vector product left out; see the module's text.

    Attributes:
        exact: False.
    """

    exact = False

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Pull the adjoint through the optimizer only."""
        return at.pull(adjoint, curvature=0)
