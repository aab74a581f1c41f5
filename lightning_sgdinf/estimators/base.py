"""The protocol of estimators that walk along the run.

They share one walk, from the run's end towards its beginning, that hands them an adjoint and takes back the
adjoint for the step before and the slopes of the step's examples. A score is minus the sum of an example's slopes: the
change of the query had the example been left out.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Protocol, runtime_checkable

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.renamed import warn_renamed


@runtime_checkable
class Estimator(Protocol):
    """Turns a run, walked from its last step to its first, into slopes of examples.

    Implementations are frozen values: all that changes during a walk is the adjoint, which the caller holds.
    """

    @property
    def exact(self) -> bool:
        """Return whether slopes are the derivative of the run over the visited steps, as central differences show."""
        ...

    def first_step(self, log: Trajectory) -> int:
        """Return the earliest step the walk visits."""
        ...

    def state_for(self, step: int, log: Trajectory) -> int:
        """Return the index of the state to differentiate a step at: its own index unless parameters are frozen."""
        ...

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Account for one step.

        Called once per step, in strictly decreasing order.

        Args:
            at: The step, set up to be differentiated.
            adjoint: As returned for the step after, or the gradient of the queries at the end of the run.

        Returns:
            The result of ``at.pull``, with another adjoint for the step before or other slopes if the method has its
            own.
        """
        ...


class WholeRun:
    """A part of estimators that visit all steps and differentiate each at its recorded state."""

    __slots__ = ()

    def first_step(self, log: Trajectory) -> int:
        """Return 0."""
        del log
        return 0

    def state_for(self, step: int, log: Trajectory) -> int:
        """Return the step's own index."""
        del log
        return step


def check_curvature_scale(estimator: object, scale: float) -> None:
    """Refuse a factor that the Hessian term cannot have.

    Raises:
        ConfigurationError: It is negative or not finite.
    """
    if not (isfinite(scale) and scale >= 0):
        raise ConfigurationError(
            f"{type(estimator).__name__}(curvature_scale): expected a finite number >= 0 (1 is the derivative of the "
            f"run, 0 leaves the Hessian term out), got {scale}"
        )


def visited(estimator: Estimator, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
    """Let an estimator account for a step.

    One written for an earlier release returns adjoint and slopes alone; the state its step led to is then unknown.
    """
    pulled: Any = estimator.visit(at, adjoint)
    if isinstance(pulled, tuple):
        warn_renamed(
            f"a tuple (adjoint, slopes) from {type(estimator).__name__}.visit", "PulledStep, as at.pull returns"
        )
        return PulledStep(adjoint=pulled[0], slopes=pulled[1])
    return pulled
