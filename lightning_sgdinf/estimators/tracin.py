r"""TracIn over the steps that really happened.

:math:`\sum_t \langle push_t, \nabla l_j(\theta_t)\rangle` with the query's gradient taken anew along the run: for plain
SGD :math:`push_t = -\eta_t \nabla q(\theta_{t'})`, with :math:`t'` the last refresh at or after ``t``. Refreshed at
every step it is the idealised influence of the reference; the default refreshes once per epoch, as its checkpoints do.

Cost: the exact walk less the Hessian term, plus one query gradient per refresh. It describes how single steps moved the
query while they happened, not what leaving an example out does to the final model.

References:
    Pruthi, Liu, Kale and Sundararajan, "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020
    (arXiv:2002.08484).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators.base import WholeRun


@dataclass(frozen=True, slots=True)
class TracIn(WholeRun):
    """TracIn on the recorded steps.

    Attributes:
        every: Steps between two refreshes of the query's gradient; ``None`` refreshes at the last step of each epoch.
        exact: False.
    """

    every: int | None = None
    exact = False

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ConfigurationError(f"TracIn(every): expected None or a number of steps >= 1, got {self.every}")

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Score with the last refreshed gradient; the optimizer's memory of it is dropped."""
        if at.is_epoch_end if self.every is None else at.step.index % self.every == 0:
            fresh = at.query_gradient()
            adjoint = fresh if fresh.average is None else Adjoint(params=fresh.average)
        return replace(at.pull(Adjoint(params=adjoint.params), curvature=0), adjoint=adjoint)
