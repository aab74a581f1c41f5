r"""A window of a run, really re-run with other example weights: what the checks of a walk compare it with.

The window goes from a recorded state to the end of the run. What the walk has accumulated for an example when it
arrives at the window's start is the derivative of exactly that re-run. In float32 the differences would drown in
rounding, so runs recorded in it are re-run in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.replay import CounterfactualRun, Objective, OpenedRun, open_objective
from lightning_sgdinf.state import ModelState

GRADIENT_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-1}
"""Largest relative error between a walk in a precision and central differences in float64 that is let pass.

A right walk in float32 stays below 1e-5 as a rule, but where rounding drives parameters that have no gradient (a bias
before BatchNorm under Adam), the run in float64 is another one, by some percent. The certificate warns above 1 %.
"""

_STEPS = (1e-6, 1e-4, 1e-8)
"""Steps of central differences in float64: training with kinks (ReLU) wants a small one, tiny scores a larger one, and
networks with millions of ReLU units, of which some are within any small step of their kink, the smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A window of the run, ready to be re-run with other weights.

    Attributes:
        window: The run from the window's start on.
        query: What is asked at its end, in the window's precision.
        examples: ``N``.
        steps: Steps of central differences, suited to the precision; the next is tried where one disagrees.
        tolerance: Allowed relative error of the gradient check.
    """

    window: CounterfactualRun
    query: BoundQuery
    examples: int
    steps: tuple[float, ...]
    tolerance: float

    @property
    def first_step(self) -> int:
        """Return the step at which the window starts."""
        return self.window.first_step

    @property
    def precision(self) -> str:
        """Return the precision it is re-run in, by the name of its type."""
        return str(self.query.objective.parameters[0].dtype).removeprefix("torch.")

    def value(self, weights: Tensor, column: int) -> float:
        """Return the query's value at the end of the window with the given example weights ``[N]``."""
        return float(self.query.value(self.window.run(weights=weights))[column])


@contextmanager
def open_rerun(run: OpenedRun, query: BoundQuery, *, first_step: int, start: ModelState) -> Iterator[Rerun]:
    """Open a window for re-running: in float64 where the recorded precision allows, else as recorded.

    Mixed-precision runs are another function in float64, and a step that draws random numbers may draw others there, so
    these are re-run in their own precision with coarser differences.

    Args:
        run: The recorded run.
        query: What is asked.
        first_step: Where the window starts.
        start: The state there.
    """
    log, objective = run.log, run.objective

    def rerun(run: OpenedRun, query: BoundQuery, steps: tuple[float, ...], tolerance: float) -> Rerun:
        window = CounterfactualRun(run, first_step, start=start)
        return Rerun(window=window, query=query, examples=run.examples, steps=steps, tolerance=tolerance)

    if objective.parameters[0].dtype == torch.float64:
        yield rerun(run, query, _STEPS, GRADIENT_TOLERANCE[torch.float64])
        return
    if log.header.precision in ("32-true", "32", "64-true", "64"):
        with open_objective(
            objective.module,
            log.header,
            objective.source,
            objective.host,
            tap=objective.tap,
            dtype=torch.float64,
            per_example_loss=objective.per_example_loss,
            rows=objective.rows,
        ) as wide:
            wide.known_from(objective)
            other = replace(run, objective=wide, _known={})
            if _agrees(other, first_step, start):
                yield rerun(other, query.in_float64(wide), _STEPS, GRADIENT_TOLERANCE[torch.float32])
                return
    yield rerun(run, query, (0.25,), 0.5)


def _agrees(run: OpenedRun, index: int, start: ModelState) -> bool:
    """Return true if the loss in float64 is the recorded one, so that random draws do not depend on the precision.

    A step that insists on its own precision, in whatever way it fails, is no error: it is then re-run in that.
    """
    step = run.log.step(index)
    micro = step.micro_batches[-1]  # the recorded loss is the last one's
    objective: Objective = run.objective
    objective.load(start)
    try:
        loss = float(objective.trace(step, micro, objective.batch(step, micro)).loss.detach()) * step.accumulation
    except Exception:
        return False
    return step.loss is None or abs(loss - step.loss) <= 1e-3 * max(abs(step.loss), 1e-3)
