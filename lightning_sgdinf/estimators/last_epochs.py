"""Another estimator, stopped early."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.arguments import whole_number
from lightning_sgdinf.estimators.base import Estimator
from lightning_sgdinf.estimators.sgd_influence import SgdInfluence
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.replay import epoch_start


@dataclass(frozen=True, slots=True)
class LastEpochs:
    """An estimator that only replays the last epochs ("Proposed (Approx.)" of Hara et al. with ``n=1``).

    It is the exact effect of leaving an example out of the last ``n`` epochs only. Needs the states of those alone
    (``keep="last_epochs(n)"``), and costs ``n`` epochs' share of the whole walk.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.estimators.LastEpochs
          n: 1
          inner:
            _target_: lightning_sgdinf.estimators.SgdInfluence
            curvature_scale: 1.0

    Attributes:
        n: Number of epochs, at least 1.
        inner: The estimator that visits each of their steps; `SgdInfluence` if ``None``.
    """

    n: int = 1
    inner: Estimator = None  # type: ignore[assignment]  # a LightningCLI takes no object for a default of a protocol

    def __post_init__(self) -> None:
        whole_number(self.n, "n", least=1)
        if self.inner is None:
            object.__setattr__(self, "inner", SgdInfluence())

    @property
    def exact(self) -> bool:
        """Return True if the inner estimator is exact."""
        return self.inner.exact

    def first_step(self, log: Trajectory) -> int:
        """Return the first step of the last ``n`` epochs."""
        return max(epoch_start(log, self.n), self.inner.first_step(log))

    def state_for(self, step: int, log: Trajectory) -> int:
        """Return the state of the inner estimator."""
        return self.inner.state_for(step, log)

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Visit by the inner estimator."""
        return self.inner.visit(at, adjoint)
