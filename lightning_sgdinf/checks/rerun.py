r"""A window of a run, really re-run with other example weights: what the checks of a walk compare it with.

The window goes from a recorded state to the end of the run. What the walk has accumulated for an example when it
arrives at the window's start is the derivative of exactly that re-run. In float32 the differences would drown in
rounding, so runs recorded in it are re-run in float64; and so are those recorded in float64 whose loss asks for float32
on the way (``logits.float()``), with float64 in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import AdjointStep, BoundQuery, rule_for
from lightning_sgdinf.checkpointing import held_in, states_in
from lightning_sgdinf.kernels import CONVOLUTION_PARTS, Interceptor
from lightning_sgdinf.replay import (
    CounterfactualRun,
    Objective,
    OpenedRun,
    Replayer,
    VanishingGradient,
    open_objective,
    retaken_backwards,
)
from lightning_sgdinf.state import ModelState

GRADIENT_TOLERANCE = 1e-3
"""Largest relative error between a walk and central differences in float64 that is let pass, but for rounding.

A right walk in float32 stays below 1e-5 as a rule. Where it does not, the window is walked in float64 as well, and what
rounding does to a walk in the recorded precision is measured.
"""
ROUNDED_TIMES = 30.0
"""Times of what rounding the parameters at the window's start otherwise does to its scores that may be put down to it:
every operation of the window rounds."""
MOST_ROUNDED = 0.3
"""Largest relative error that rounding may ever explain: of more, nothing would be left to check."""

_WITHOUT_CASTS = ("64-true", "64", "32-true", "32", "16-true", "bf16-true")
"""Precisions in which a run is the same function as in float64, but for rounding."""

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
        run: The run it is a window of, in the precision it is re-run in.
        recorded: The same run and query in the precision that rounds, where that is another.
    """

    window: CounterfactualRun
    query: BoundQuery
    examples: int
    steps: tuple[float, ...]
    tolerance: float
    run: OpenedRun
    recorded: tuple[OpenedRun, BoundQuery] | None = None

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
        with Interceptor(CONVOLUTION_PARTS):
            return float(self.query.value(self.window.run(weights=weights))[column])

    def walked(self) -> Tensor:
        """Return the scores of a walk of the window in the precision it is re-run in, ``[N, Q]``."""
        return _walked(self.run, self.query, self.first_step, self.window.start.state)

    def rounding(self, column: int) -> float:
        """Return by how much rounding moves scores of the window in the recorded precision, as a part of their norm.

        Two walks are compared whose first states differ by a rounding of every parameter.
        """
        assert self.recorded is not None
        run, query = self.recorded
        start = self.window.start.state
        with _opened_again(run) as narrow:  # the module itself is in float64 now
            narrow.vanishing = self.run.objective.vanishing
            again, same = replace(run, objective=narrow, _known={}), replace(query, objective=narrow)
            states = (start, _rounded_otherwise(start))
            first, other = (_walked(again, same, self.first_step, s)[:, column] for s in states)
        return float((first - other).norm() / first.norm().clamp_min(torch.finfo(first.dtype).tiny))


def _opened_again(run: OpenedRun, **more: Any) -> AbstractContextManager[Objective]:
    """Open the module of a run once more, inside: in the recorded precision, unless another is given."""
    objective = run.objective
    return open_objective(
        objective.module,
        run.log.header,
        objective.source,
        objective.host,
        tap=objective.tap,
        per_example_loss=objective.per_example_loss,
        rows=objective.rows,
        **more,
    )


def _walked(run: OpenedRun, query: BoundQuery, first_step: int, start: ModelState) -> Tensor:
    """Return the scores ``[N, Q]`` of the steps from one on, walked from where they lead from a state."""
    log, objective = run.log, run.objective
    replayer, final = Replayer(log, objective), CounterfactualRun(run, first_step, start=start).run()
    adjoint = query.end(run, final)[1]
    scores = torch.zeros(run.examples, adjoint.queries, dtype=torch.float64)
    size = sum(v.numel() * v.element_size() for _, _, _, v in start.items())
    held = held_in(states_in(run.memory_bytes, size))
    advance = lambda state, t: replayer.advance(state, log.step(t))  # noqa: E731
    states = retaken_backwards(start, first_step, len(log), first_step, advance, held)
    rule = rule_for(log.header.optimizer)
    for t, before in states:
        step = log.step(t)
        pulled = AdjointStep(step, before, objective, rule, lambda state: query.gradient(state)[1]).pull(adjoint)
        scores.index_add_(0, torch.tensor(step.example_ids), -pulled.slopes.detach().to("cpu", torch.float64).T)
        adjoint = pulled.adjoint
    return scores


def _rounded_otherwise(state: ModelState) -> ModelState:
    """Return a state whose parameters are rounded otherwise, each by an amount at random."""
    generator = torch.Generator().manual_seed(0)

    def rounded(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        unit = max(torch.finfo(torch.float32).eps, torch.finfo(value.dtype).eps)
        return value * (1 + unit * torch.randn(value.shape, generator=generator).to(value))

    return replace(state, params={name: rounded(value) for name, value in state.params.items()})


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
    log = run.log

    def rerun(run: OpenedRun, query: BoundQuery, steps: tuple[float, ...], tolerance: float, **more: Any) -> Rerun:
        window = CounterfactualRun(run, first_step, start=start)
        return Rerun(
            window=window, query=query, examples=run.examples, steps=steps, tolerance=tolerance, run=run, **more
        )

    if run.precision == "float64":
        yield rerun(run, query, _STEPS, GRADIENT_TOLERANCE)
        return
    if log.header.precision in _WITHOUT_CASTS:
        vanishing = _recorded_rounding(run, first_step, start)
        with _opened_again(run, dtype=torch.float64, widened=True) as wide:
            wide.known_from(run.objective)
            wide.vanishing = vanishing
            other = replace(run, objective=wide, _known={})
            if _agrees(other, first_step, start):
                yield rerun(other, query.in_float64(wide), _STEPS, GRADIENT_TOLERANCE, recorded=(run, query))
                return
    yield rerun(run, query, (0.25,), 0.5)


def _recorded_rounding(run: OpenedRun, first_step: int, start: ModelState) -> VanishingGradient:
    """Return what rounding made in a window of the elements of the gradient that are zero but for it."""
    recorded = VanishingGradient(run.objective.vanishing.elements)
    if recorded.elements:
        Replayer(run.log, run.objective, seen=recorded.record).run(start, first_step, len(run.log))
    return recorded


def _unit(dtype: str) -> float:
    return float(torch.finfo(getattr(torch, dtype)).eps)


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
    rounding = max(1e-3, 4 * max(_unit(dtype) for _, _, dtype in run.log.header.parameters))
    return step.loss is None or abs(loss - step.loss) <= rounding * max(abs(step.loss), 1e-3)
