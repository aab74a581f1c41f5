"""The trust in scores: examples really left out, of the whole run where that can be afforded.

As many as a budget allows, at least six, of the whole run. The budget is a part of the time that the scores took, or a
second where that is more: seven trainings cannot be had in half a walk, but in a second that nobody waits for. Where
that is too dear (forecast from the times of its own steps), six of a window before the end, the longest that can be
afforded, and of a shorter one: what they say is not said of the whole run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.certificate import Trust, Window
from lightning_sgdinf.checks.agreement import agreement, spread_sample
from lightning_sgdinf.errors import NonFiniteError, StateNotStoredError, UnsupportedRunError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.truth import MeasuredRemovals, Pace, Removals, clock

COUNTS = (200, 100, 64, 48, 32, 24, 16, 12, 8, 6)
"""Numbers of examples to leave out, the largest that can be afforded."""
SHARE = 0.4
"""Part of a walk's time that all checks of a fast certificate plan for; half of it, where the forecast is off."""
SHORT_SECONDS = 1.0
"""Time that all checks of a fast certificate may take whatever the walk took: short runs are to have a figure, too."""
SHORT_EXAMPLES = 24
"""Examples that may be left out for that; more have to fit into the walk's share."""
FULL_SECONDS = 10.0
"""Time that a full certificate spends on more examples than it leaves out in any case."""
DIRECT_SECONDS = 1.0
"""Time that an estimate without a walk may take for it, of which nothing else is checked."""
PROBE_STEPS = 8
"""Steps of a walk that take about as long as a forecast, with the shortest window; with less time there is none."""
MEMORY_BYTES = 16 << 20
"""Memory for models that are trained at once; larger ones are trained one after another."""
SHORTER = 4
"""A second window is so many times shorter."""
NOISE = 0.1
"""Part of the measured changes that rounding may make unsaid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The cost that leaving examples out may have.

    Attributes:
        seconds: Time by `clock`.
        short_seconds: The same for at most `SHORT_EXAMPLES`, where it is more.
        least_seconds: Time below which it is not worth to forecast what could be done.
        examples: Number of examples to leave out of the whole run whatever it takes; 0 for none.
        memory_bytes: Memory for models that are trained at once.
    """

    seconds: float
    short_seconds: float = 0.0
    least_seconds: float = 0.0
    examples: int = 0
    memory_bytes: int = MEMORY_BYTES

    def of(self, count: int) -> float:
        """Return the seconds for leaving out a number of examples."""
        return self.seconds if count > SHORT_EXAMPLES else max(self.seconds, self.short_seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """The knowledge of a walk that arrives at a step.

    Attributes:
        scores: What it has accumulated, ``[N]``.
        first: The step from there on at which each example is first drawn, ``T`` for those that are not, int64 ``[N]``.
    """

    scores: Tensor
    first: Tensor


def fast_allowance(walk_seconds: float, spent_seconds: float, steps: int) -> Allowance:
    """Return what a fast certificate may spend on leaving examples out.

    Args:
        walk_seconds: Time by `clock` that the scores took.
        spent_seconds: The same of other checks.
        steps: That were walked.
    """
    least = PROBE_STEPS * walk_seconds / max(steps, 1)
    return Allowance(
        seconds=SHARE * walk_seconds - spent_seconds,
        short_seconds=SHORT_SECONDS - spent_seconds,
        least_seconds=least,
    )


def direct_allowance(elapsed_seconds: float) -> Allowance:
    """Return what may be spent where nothing was walked, so that leaving examples out is the only check.

    Args:
        elapsed_seconds: Time by `clock` that the estimate took.
    """
    return Allowance(seconds=max(SHARE * elapsed_seconds, DIRECT_SECONDS))


def full_allowance() -> Allowance:
    """Return what a full certificate may: two dozen examples, whatever that takes, and more if they are cheap."""
    return Allowance(seconds=FULL_SECONDS, examples=24)


def window_lengths(steps: int, shortest: int = 3) -> list[int]:
    """Return lengths of windows before the end of a run, each twice the one before, all shorter than the run."""
    lengths = []
    while shortest < steps:
        lengths.append(shortest)
        shortest *= 2
    return lengths


def check_trust(
    run: OpenedRun,
    query: BoundQuery,
    reached: Mapping[int, Reached],
    allowance: Allowance,
    *,
    column: int = 0,
    seed: int = 0,
) -> tuple[Trust | None, tuple[str, ...]]:
    """Leave examples out and compare what that does with what was predicted.

    Args:
        run: The recorded run.
        query: What is asked at its end.
        reached: What the walk knows when it arrives at a step, by step; at the earliest one these are the scores.
        allowance: What it may cost.
        column: Which query they are of.
        seed: Of the choice of examples.

    Returns:
        The result, ``None`` if there is none, and sentences that a reader must know.
    """
    if allowance.of(COUNTS[-1]) < allowance.least_seconds and not allowance.examples:
        return None, (
            "Trust was not measured: the scores took so little time that a part of it is not enough to leave examples "
            "out. certificate='full' does it.",
        )
    trial = _Trial(run, query, reached, allowance, column, seed)
    try:
        return trial.result()
    except (StateNotStoredError, NonFiniteError, UnsupportedRunError) as error:
        return None, (f"Trust was not measured: {error}",)


class _Trial:
    """One measurement; arguments are those of `check_trust`."""

    def __init__(
        self,
        run: OpenedRun,
        query: BoundQuery,
        reached: Mapping[int, Reached],
        allowance: Allowance,
        column: int,
        seed: int,
    ) -> None:
        self.run, self.query, self.reached, self.allowance = run, query, reached, allowance
        self.column, self.seed = column, seed
        self.began, self.clock_began = time.perf_counter(), clock(run.host.device)
        self.reach = min(reached)
        self.pace: Pace | None = None

    def result(self) -> tuple[Trust | None, tuple[str, ...]]:
        """Return the trust of the whole run, or else of windows before its end."""
        removals = self.removals(self.reach)
        if len(self.drawn(removals)) < 3:
            return None, ("Trust was not measured: fewer than three examples are in the steps that were walked.",)
        needed = 0.0
        for count in COUNTS:
            ids = self.sample(removals, count)
            needed = removals.forecast(ids)
            if needed <= self.left(count) or count <= self.allowance.examples:
                return self.measured(removals, ids)
        return self.of_windows(needed)

    def of_windows(self, needed: float) -> tuple[Trust | None, tuple[str, ...]]:
        """Return the trust of the longest window that can be afforded, with that of a shorter one."""
        total = len(self.run.log)
        for first in sorted(step for step in self.reached if step > self.reach):
            removals = self.removals(first)
            ids = self.sample(removals, COUNTS[-1])
            if len(ids) < 3 or removals.forecast(ids) > self.left(len(ids)):
                continue
            trust, notes = self.measured(removals, ids, needed)
            shorter = [s for s in self.reached if total - s <= (total - first) / SHORTER]
            if trust is not None and shorter:
                removals = self.removals(min(shorter))
                ids = self.sample(removals, COUNTS[-1])
                if len(ids) >= 3 and removals.forecast(ids) <= self.left(len(ids)):
                    trust, notes = self.with_shorter(trust, removals, ids), notes
            return trust, notes
        return None, (
            f"Trust was not measured: leaving out {COUNTS[-1]} examples would take about {needed:.2g} s, and even the "
            "last steps of the run more than a part of the time that the scores took. certificate='full' does it.",
        )

    def left(self, count: int) -> float:
        """Return the seconds that are left for leaving out a number of examples."""
        return self.allowance.of(count) - (clock(self.run.host.device) - self.clock_began)

    def removals(self, first_step: int) -> Removals:
        """Return the run from a step on, at the pace that was measured before."""
        removals = Removals(
            self.run,
            self.query,
            self.reached[first_step].first,
            first_step=first_step,
            memory_bytes=self.allowance.memory_bytes,
            pace=self.pace,
        )
        self.pace = removals.pace
        return removals

    def drawn(self, removals: Removals) -> Tensor:
        """Return the ids of the examples that occur in the steps."""
        return (removals.first < len(self.run.log)).nonzero().flatten()

    def sample(self, removals: Removals, count: int) -> list[int]:
        """Draw examples to leave out."""
        return spread_sample(self.reached[removals.first_step].scores, self.drawn(removals), count, self.seed)

    def measured(self, removals: Removals, ids: list[int], needed: float = 0.0) -> tuple[Trust | None, tuple[str, ...]]:
        """Leave some examples out; ``needed`` are the seconds that doing so from the whole run would take."""
        measured = removals.measure(ids)
        changes = measured.changes[:, self.column].tolist()
        scores, drawn = self.reached[removals.first_step].scores, self.drawn(removals)
        place = torch.searchsorted(drawn, torch.tensor(ids)).tolist()
        agreed = agreement(scores[drawn], place, changes, self.seed)
        trust = Trust(
            first_step=removals.first_step,
            example_ids=tuple(ids),
            predicted=tuple(scores[ids].tolist()),
            measured=tuple(changes),
            correlation=agreed.correlation,
            low=agreed.low,
            high=agreed.high,
            slope=agreed.slope,
            right_signs=agreed.right_signs,
            population=len(drawn),
            reach=self.reach,
            steps=len(self.run.log),
            query=self.query.names[self.column],
            seconds=time.perf_counter() - self.began,
            needed_seconds=needed,
            at_once=measured.at_once,
            memory_bytes=removals.memory_bytes(len(ids)),
        )
        return trust, self.noise(measured, changes)

    def with_shorter(self, trust: Trust, removals: Removals, ids: list[int]) -> Trust:
        """Add what a shorter window says."""
        short, _ = self.measured(removals, ids)
        assert short is not None
        window = Window(steps=short.steps - short.first_step, correlation=short.correlation, left_out=len(ids))
        return replace(trust, shorter=(*trust.shorter, window), seconds=time.perf_counter() - self.began)

    def noise(self, measured: MeasuredRemovals, changes: list[float]) -> tuple[str, ...]:
        """Return a note if rounding is no small part of what was measured."""
        if measured.at_once == 1:
            return ()
        recorded = float(self.query.value(self.run.model)[self.column])
        drift, size = abs(float(measured.base[self.column]) - recorded), max(map(abs, changes))
        if drift <= NOISE * size:
            return ()
        return (
            f"The run taken again with nothing left out ends {drift:.1e} from the recorded one in "
            f"{self.query.names[self.column]}, where the largest measured change is {size:.1e}: rounding is a part of "
            "what was measured.",
        )
