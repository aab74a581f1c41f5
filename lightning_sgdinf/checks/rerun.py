r"""The gradient check and the trust check of a walk: sampled examples, really re-run.

Both re-run a window of recorded steps, from the recorded state at its start to the end of the run, with changed example
weights: ``1 +- eps`` for the gradient check, 0 for the trust check. What the walk has booked for an example when it
arrives at the window's start is the derivative of exactly that re-run. In float32 the differences would drown in
rounding, so runs recorded in it are re-run in float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.query_gradient import value_of
from lightning_sgdinf.certificate import GradientCheck, Trust
from lightning_sgdinf.dtypes import cast_floats
from lightning_sgdinf.errors import CertificateError, DataMismatchError
from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.query import Query, ValidationData
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.objective import Objective, open_objective
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.state import ModelState

GRADIENT_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-1}
"""Largest relative error between a walk in a precision and central differences in float64 that is let pass.

A right walk in float32 stays below 1e-5 as a rule, but where rounding drives parameters that have no gradient (a bias
before BatchNorm under Adam), the run in float64 is another one, by some percent. The certificate warns above 1 %.
"""

_STEPS = (1e-6, 1e-4, 1e-8)
"""Steps of central differences in float64: training with kinks (ReLU) wants a small one, tiny scores a larger one, and
networks with millions of rectified units, of which some are within any small step of their kink, the smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is checked.

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
    """A window so short that its re-runs cost about a seventh of the walk, but of three steps at least.

    A re-run step in float64 costs one to three training steps, and so does a walked one; the base run is re-run too. Of
    a single step only the slopes would be checked: curvature enters with the second, running statistics with the third.
    """
    walked = len(log) - first_step
    runs = 1 + 2 * gradient_examples + trust_examples
    window = min(walked, max(3, int(walked * 0.15 / runs)))
    return Plan(first_step=len(log) - window, gradient_examples=gradient_examples, trust_examples=trust_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A window of the run, ready to be done again with other weights.

    Attributes:
        log: The record.
        objective: The opened model.
        query: What is asked at the end.
        data: Validation data, in the objective's precision.
        context: Precision context of the query.
        first_step: Where the window starts.
        start: The state there.
        examples: ``N``.
        steps: Steps of central differences, suited to the precision; the next is tried where one disagrees.
        tolerance: Allowed relative error of the gradient check.
    """

    log: Trajectory
    objective: Objective
    query: Query
    data: ValidationData
    context: Callable[[], Any]
    first_step: int
    start: ModelState
    examples: int
    steps: tuple[float, ...]
    tolerance: float

    def values(self, weights: Mapping[int, float], column: int) -> float:
        """The query's value at the end of the window with the given example weights."""
        own = torch.ones(self.examples, dtype=torch.float64)
        for example, weight in weights.items():
            own[example] = weight
        end, moved = self._end(own)
        if self.log.average is not None:
            _, unmoved = self._end(torch.ones(self.examples, dtype=torch.float64))
            end = _with_average(end, self.log.average, moved, unmoved)
        return float(value_of(self.objective, end, self.query, self.data, self.context)[column])

    def _end(self, weights: Tensor) -> tuple[ModelState, dict[str, Tensor]]:
        """The last state, and what the window adds to the running average."""
        retracer = Replayer(self.log, self.objective)
        if self.log.average is None:
            return retracer.run(self.start, self.first_step, len(self.log), weights=weights), {}
        state, fed = self.start, {}
        for step in self.log.steps(self.first_step, len(self.log)):
            state = retracer.advance(state, step, weights=weights)
            if step.average is not None:
                a, b = step.average
                now = {**state.params, **{n: v for n, v in state.buffers.items() if v.is_floating_point()}}
                fed = {
                    n: a * fed.get(n, torch.zeros_like(v, dtype=torch.float64)) + b * v.double() for n, v in now.items()
                }
        return state, fed


def _with_average(
    end: ModelState, average: Mapping[str, Tensor], moved: Mapping[str, Tensor], unmoved: Mapping[str, Tensor]
) -> ModelState:
    """The averaged model at the end: the recorded average, shifted by what the changed window fed it differently."""

    def shifted(name: str, value: Tensor) -> Tensor:
        if name not in average:
            return value
        base = average[name].to(torch.float64)
        return base + (moved[name] - unmoved[name]) if name in moved and base.is_floating_point() else base

    return replace(
        end,
        params={n: shifted(n, v) for n, v in end.params.items()},
        buffers={n: shifted(n, v) if v.is_floating_point() else v for n, v in end.buffers.items()},
    )


@contextmanager
def open_rerun(
    log: Trajectory,
    objective: Objective,
    host: Host,
    query: Query,
    data: ValidationData,
    context: Callable[[], Any],
    *,
    first_step: int,
    start: ModelState,
    examples: int,
    tap: str | None,
) -> Iterator[Rerun]:
    """Open a window for re-running: in float64 where the recorded precision allows, else as recorded.

    Mixed-precision runs are another function in float64, and a step that draws random numbers may draw others there, so
    these are re-run in their own precision with coarser differences.
    """
    shared: dict[str, Any] = {
        "log": log,
        "query": query,
        "first_step": first_step,
        "start": start,
        "examples": examples,
    }
    own_dtype = objective.parameters[0].dtype
    plain = log.header.precision in ("32-true", "32", "64-true", "64")
    if own_dtype == torch.float64:
        tolerance = GRADIENT_TOLERANCE[torch.float64]
        yield Rerun(**shared, objective=objective, data=data, context=context, steps=_STEPS, tolerance=tolerance)
        return
    if plain:
        wide = replace(data, transfer=lambda b: cast_floats(data.transfer(b), torch.float64))
        with open_objective(
            objective.module, log.header, objective.source, host, tap=tap, dtype=torch.float64
        ) as other:
            if _agree(log, other, first_step, start):
                tolerance = GRADIENT_TOLERANCE[torch.float32]
                yield Rerun(
                    **shared, objective=other, data=wide, context=nullcontext, steps=_STEPS, tolerance=tolerance
                )
                objective.forget_modes()
                return
        objective.forget_modes()
    yield Rerun(**shared, objective=objective, data=data, context=context, steps=(0.25,), tolerance=0.5)


def check_gradient(rerun: Rerun, scores: Tensor, plan: Plan, column: int = 0) -> GradientCheck | None:
    """Compare the walk's scores of the window with central differences.

    Args:
        rerun: The window.
        scores: What the walk has booked at the window's start, ``[N, Q]``.
        plan: How many examples.
        column: Which query.

    Returns:
        The result; ``None`` if no example of the window has any effect.

    Raises:
        CertificateError: If they disagree; says by how much and what usually causes it.
        DataMismatchError: If they disagree because the query is not the same function each time it is asked.
    """
    chosen = _strongest(scores[:, column], plan.gradient_examples)
    if not chosen:
        return None
    predicted = [float(scores[j, column]) for j in chosen]
    measured, error = [0.0], math.inf
    for eps in rerun.steps:
        found = [_central_difference(rerun, j, eps, column) for j in chosen]
        size = max(abs(v) for v in (*found, *predicted))
        gap = max(abs(p - m) for p, m in zip(predicted, found, strict=True)) / size
        if gap < error:
            measured, error = found, gap
        if error <= rerun.tolerance:
            break
    else:
        _expect_one_answer(rerun, column)
        raise CertificateError(
            f"gradient check failed: for examples {chosen}, the walk says {predicted} from step {rerun.first_step} on, "
            f"central differences of a re-run say {measured} (relative error {error:.1e}, allowed "
            f"{rerun.tolerance:.0e}). Usual causes: an operation whose second derivative torch gets wrong or cuts off "
            "(detach, no_grad, custom autograd functions), a buffer that the loss depends on and the forward pass "
            "changes, a loss with jumps. certificate='off' gives the scores unchecked."
        )
    return GradientCheck(
        first_step=rerun.first_step,
        example_ids=tuple(chosen),
        predicted=tuple(predicted),
        measured=tuple(measured),
        relative_error=error,
        tolerance=rerun.tolerance,
    )


def _expect_one_answer(rerun: Rerun, column: int) -> None:
    """Ask the same model twice; two answers have no derivative."""
    once, again = rerun.values({}, column), rerun.values({}, column)
    if abs(once - again) > 1e-9 * max(abs(once), abs(again)):  # more than sums in another order make
        raise DataMismatchError(
            f"the query {rerun.query.names(rerun.data)[column]!r} has two values at one and the same model, {once:.6g} "
            f"and {again:.6g}: expected the same validation examples in every pass. They, or the model, draw random "
            "numbers from a generator of their own; only torch's, numpy's and python's global generators begin anew "
            "with each pass. Draw from these, or pass a validation loader without augmentation."
        )


def _central_difference(rerun: Rerun, example: int, eps: float, column: int) -> float:
    up = rerun.values({example: 1 + eps}, column)
    down = rerun.values({example: 1 - eps}, column)
    return -(up - down) / (2 * eps)


def check_trust(rerun: Rerun, scores: Tensor, plan: Plan, ids: Tensor, column: int = 0) -> Trust | None:
    """Leave sampled examples out of the window and compare.

    Half of them are those with the largest scores, half are drawn at random from the window's.

    Args:
        rerun: The window.
        scores: What the walk has booked at the window's start, ``[N, Q]``.
        plan: How many examples.
        ids: Examples that occur in the window.
        column: Which query.

    Returns:
        The result; ``None`` if the window has fewer than three examples.
    """
    chosen = _strongest(scores[:, column], plan.trust_examples // 2)
    generator = torch.Generator().manual_seed(plan.seed)
    others = [int(i) for i in ids[torch.randperm(len(ids), generator=generator)] if int(i) not in chosen]
    chosen = chosen + others[: plan.trust_examples - len(chosen)]
    if len(chosen) < 3:
        return None
    base = rerun.values({}, column)
    measured = [rerun.values({j: 0.0}, column) - base for j in chosen]
    predicted = [float(scores[j, column]) for j in chosen]
    correlation = _pearson(predicted, measured)
    low, high = _fisher_interval(correlation, len(chosen))
    return Trust(
        first_step=rerun.first_step,
        example_ids=tuple(chosen),
        predicted=tuple(predicted),
        measured=tuple(measured),
        correlation=correlation,
        low=low,
        high=high,
    )


def window_examples(steps: Iterator[Step]) -> Tensor:
    """Ids of the examples that occur in some steps, each once."""
    found = [torch.tensor(s.example_ids) for s in steps]
    return torch.unique(torch.cat(found)) if found else torch.empty(0, dtype=torch.int64)


def stopwatch() -> Callable[[], float]:
    """Seconds since it was made."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def _strongest(scores: Tensor, count: int) -> list[int]:
    order = torch.argsort(scores.abs(), descending=True)[:count]
    return [int(i) for i in order if scores[i] != 0]


def _agree(log: Trajectory, wide: Objective, index: int, start: ModelState) -> bool:
    """Whether the loss in float64 is the recorded one, so that random draws do not depend on the precision.

    A step that insists on its own precision is no error: it is then re-run in that.
    """
    step = log.step(index)
    micro = step.micro_batches[-1]  # the recorded loss is the last one's
    wide.load(start)
    try:
        found = float(wide.trace(step, micro, wide.batch(step, micro)).loss.detach()) * step.accumulation
    except RuntimeError:
        return False
    if step.loss is None:
        return True
    return abs(found - step.loss) <= 1e-3 * max(abs(step.loss), 1e-3)


def _pearson(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    size = x.norm() * y.norm()
    return float((x @ y) / size) if size > 0 else float("nan")


def _fisher_interval(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval of a correlation from ``count`` pairs; the whole range below four."""
    if count < 4 or not abs(correlation) < 1:
        return (-1.0, 1.0) if count < 4 else (correlation, correlation)
    z, half = math.atanh(correlation), 1.959963984540054 / math.sqrt(count - 3)
    return math.tanh(z - half), math.tanh(z + half)
