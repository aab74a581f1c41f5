"""The part of a run that is re-run for the gradient check."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.log import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The window that is re-run, and how often.

    Attributes:
        first_step: Where the window starts.
        directions: How many central differences are taken (two re-runs each).
        seed: Of the directions.
    """

    first_step: int
    directions: int
    seed: int = 0


def fast_plan(log: Trajectory, first_step: int) -> Plan:
    """Return a window so short that its two re-runs cost some percent of the walk, but of three steps at least.

    Of a single step only the slopes would be checked: curvature enters with the second, running statistics with the
    third.
    """
    walked = len(log) - first_step
    return Plan(first_step=len(log) - min(walked, max(3, walked // 50)), directions=1)
