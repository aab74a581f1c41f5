"""The walk with the final parameters in the place of every recorded state.

Gradients and Hessian-vector products of the last epochs' batches are all taken at the end of the run, so that no
trajectory has to be stored (``keep="final"``): only the ids, learning rates and random numbers.

``curvature_scale`` damps the Hessian term as in `SgdInfluence`.

Not exact: it answers for a run that stood still at its end. Close to `LastEpochs` where training has converged.

References:
    Suzuki, Kobayashi and Narihira, "Data Cleansing for Deep Neural Networks with Storage-efficient Approximation of
    Influence Functions", 2021 (arXiv:2103.11807).
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators.base import check_curvature_scale
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.replay import epoch_start


@dataclass(frozen=True, slots=True)
class FinalParameters:
    """SGD-influence from final parameters only.

    Attributes:
        epochs: Number of last epochs that are replayed (1 in the reference), at least 1.
        curvature_scale: Factor of the Hessian term, at least 0.
        exact: False.
    """

    epochs: int = 1
    curvature_scale: float = 1.0
    exact = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigurationError(f"FinalParameters(epochs): expected epochs >= 1, got {self.epochs}")
        check_curvature_scale(self, self.curvature_scale)

    def first_step(self, log: Trajectory) -> int:
        """Return the first step of the last epochs."""
        return epoch_start(log, self.epochs)

    def state_for(self, step: int, log: Trajectory) -> int:
        """Return the index of the last state."""
        del step
        return len(log)

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Pull the adjoint through the step as if it had been taken at the end of the run."""
        return at.pull(adjoint, curvature=self.curvature_scale)
