"""What an estimator is: what to do at each replayed step.

All estimators share one walk, from the run's end towards its beginning, that hands them an adjoint and takes back the
adjoint for the step before and the slopes of the step's examples. A score is minus the sum of an example's slopes: the
change of the query had the example been left out.
"""

from __future__ import annotations

from math import isfinite
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.step import AdjointStep
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log.trajectory import Trajectory


@runtime_checkable
class Estimator(Protocol):
    """Turns a run, walked from its last step to its first, into slopes of examples.

    Implementations are frozen values: all that changes during a walk is the adjoint, which the caller holds.
    """

    @property
    def exact(self) -> bool:
        """Whether slopes are the derivative of the recorded run over the visited steps (then central differences must
        agree)."""
        ...

    def first_step(self, log: Trajectory) -> int:
        """The earliest step the walk visits."""
        ...

    def state_for(self, step: int, log: Trajectory) -> int:
        """Index of the state at which a step is to be differentiated: the step's own index unless parameters are
        frozen."""
        ...

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> tuple[Adjoint, Tensor]:
        """Account for one step.

        Called once per step, in strictly decreasing order.

        Args:
            at: The step, set up to be differentiated.
            adjoint: As returned for the step after, or the gradient of the queries at the end of the run.

        Returns:
            The adjoint for the step before, and the derivative of each query in the weight of each example of the step,
            ``[Q, B]``, in the order of ``at.step.example_ids``.
        """
        ...


def check_curvature_scale(estimator: object, scale: float) -> None:
    """Refuse what the Hessian term cannot be multiplied by.

    Raises:
        ConfigurationError: It is negative or not finite.
    """
    if not (isfinite(scale) and scale >= 0):
        raise ConfigurationError(
            f"{type(estimator).__name__}(curvature_scale): expected a finite number >= 0 (1 is the derivative of the "
            f"run, 0 leaves the Hessian term out), got {scale}"
        )


def epoch_start(log: Trajectory, epochs: int) -> int:
    """First step of the last ``epochs`` epochs of a run; 0 if there were no more."""
    if len(log) == 0:
        return 0
    last = log.step(len(log) - 1).epoch
    wanted = last - epochs + 1
    low, high = 0, len(log)
    while low < high:  # epochs never decrease along a run
        middle = (low + high) // 2
        if log.step(middle).epoch < wanted:
            low = middle + 1
        else:
            high = middle
    return low
