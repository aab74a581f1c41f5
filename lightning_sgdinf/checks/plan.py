"""The part of a run that is re-run for a certificate."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.log import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The window and the examples that are checked.

    Attributes:
        first_step: Where the window starts.
        gradient_examples: How many examples get a central difference (two re-runs each).
        trust_examples: How many are really left out (one re-run each).
        seed: Of the choice of examples.
    """

    first_step: int
    gradient_examples: int
    trust_examples: int
    seed: int = 0


def fast_plan(log: Trajectory, first_step: int, *, gradient_examples: int = 2, trust_examples: int = 6) -> Plan:
    """Return a window so short that its re-runs cost about a seventh of the walk, but of three steps at least.

    A re-run step in float64 costs one to three training steps, and so does a walked one; the base run is re-run too. Of
    a single step only the slopes would be checked: curvature enters with the second, running statistics with the third.
    """
    walked = len(log) - first_step
    runs = 1 + 2 * gradient_examples + trust_examples
    window = min(walked, max(3, int(walked * 0.15 / runs)))
    return Plan(first_step=len(log) - window, gradient_examples=gradient_examples, trust_examples=trust_examples)
