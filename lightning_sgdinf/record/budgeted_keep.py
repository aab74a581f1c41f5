r"""Store states under a budget, while the run is under way.

It is measured what states and records really take, and how long the run really gets. Of what is free, the states that
are to come get

.. math:: k = \lceil remaining\ steps \cdot bytes\ per\ state / free\ bytes \rceil

A run that gets longer than planned, or of which nobody knows how long it gets, is taken to become twice as long as it
is, and half of what is free is spent on that; so ``k`` doubles whenever the run does, and no state has to be deleted
that replay would need. Before a state is stored, what it can take at most must be free.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_sgdinf import random_state
from lightning_sgdinf.log import LogSizes, MicroBatch
from lightning_sgdinf.random_state import RandomState
from lightning_sgdinf.record.budget import Budget, Prospect, every_kth, make_plan, shown_bytes
from lightning_sgdinf.record.header import expected_steps

_MARGIN = 1 / 16  # of the budget, for a run that gets longer
_UNPLANNED = 8  # times as long as it is, a run of unknown length may get without its records outgrowing the budget
_FIRST_LOOK = 16
_NEVER = 1 << 62
_DOCUMENT_BYTES = 300  # of a step, and of each of its passes, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class _Since:
    """The beginning of a measurement: a step, the log's sizes, stored states, and the time."""

    index: int
    sizes: LogSizes
    stored: int
    seconds: float


class BudgetedKeep:
    """A plan in use; a `Keep` for one run.

    Args:
        budget: The bytes.
        prospect: Of the run.
        measure: Returns the sizes of the log; waits for everything to be written.
        remaining: Called with the seconds that a step takes, once that is known; returns the number of steps that are
            still to come: ``None`` if nobody knows, 0 if none should.
        inform: Called with a sentence when something has been measured or changed.
        clock: Seconds.
    """

    def __init__(
        self,
        budget: Budget,
        prospect: Prospect,
        *,
        measure: Callable[[], LogSizes],
        remaining: Callable[[float | None], int | None] = lambda seconds: None,
        inform: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = make_plan(budget, prospect)
        self._budget, self._prospect = budget, prospect
        self._measure = measure
        self._remaining, self._inform, self._clock = remaining, inform, clock
        self._every = self.plan.every
        self._told = 0  # the spacing that was told last
        self._asked = 0
        self._since: _Since | None = None
        self._seconds: float | None = None  # that a step takes
        self._used = 0  # bytes of the log, at most
        self._record_bytes = float(prospect.record_bytes)
        self._stored = 0
        self._last: int | None = None  # the last stored state
        self._next_look = _NEVER
        self._outlived = False  # the run has got longer than anybody knew

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Tell if the state before step ``index`` is stored."""
        if not self.plan.every:
            return False
        self._asked += 1
        if self._asked <= 2:
            self._begin(index)
        self._used += round(self._record_bytes)
        outlived = not self._outlived and self._remaining(self._seconds) == 0
        self._outlived |= outlived
        if outlived or index >= self._next_look:
            self._look(index)
        if self.plan.last_epochs and epoch < max_epochs - self.plan.last_epochs:
            return False
        if self._last is not None and index < self._last + self._every:
            return False
        largest = self._prospect.largest_bytes
        if self._free(index) < largest:
            self._look(index)
            if self._free(index) < largest:
                self._every = _NEVER
                self._tell(index)
                return False
        self._used += largest
        self._stored += 1
        self._last = index
        return True

    def _begin(self, index: int) -> None:
        """Begin to measure: before the first step the log may have something already; after it, it has all that does
        not grow."""
        sizes = self._measure()
        self._used, self._next_look = sizes.total, index + _FIRST_LOOK
        self._since = _Since(index=index, sizes=sizes, stored=self._stored, seconds=self._clock())

    def _free(self, index: int) -> float:
        """Return the bytes of the budget that neither the log has nor its end and the records to come will need."""
        to_come = self._remaining(self._seconds) or _UNPLANNED * (index + 1)
        return self._budget.size_bytes - self._used - self._prospect.ending_bytes - to_come * self._record_bytes

    def _look(self, index: int) -> None:
        """Measure, and plan what is to come anew."""
        assert self._since is not None
        since, sizes = self._since, self._measure()
        self._used = sizes.total
        states, stored = sizes.states - since.sizes.states, self._stored - since.stored
        if taken := index - since.index:
            self._record_bytes = max(0.0, (sizes.total - since.sizes.total - states) / taken)
            self._seconds = (self._clock() - since.seconds) / taken
        known = self._remaining(self._seconds)
        self._next_look = index + max(_FIRST_LOOK, min(taken, known // 8 if known else taken))
        if self.plan.last_epochs:
            return
        each = states / stored if stored else self._prospect.expected_bytes(max(1, self._every))
        self._every = self._spacing(index, each)
        if not self._told or not self._told / 2 < self._every < self._told * 2:
            self._tell(index, each)

    def _spacing(self, index: int, each: float) -> int:
        """Return how many steps apart states can be stored from now on, if one takes ``each`` bytes."""
        known = self._remaining(self._seconds)
        to_come = known or index + 1
        free = self._free(index)
        free -= _MARGIN * self._budget.size_bytes if known else free / 2
        if free <= 0:
            return _NEVER
        every = max(1, math.ceil(to_come * each / free))
        if every > self._every:  # further apart, states compress less
            every = max(every, math.ceil(to_come * max(each, self._prospect.expected_bytes(2)) / free))
        return every

    def _tell(self, index: int, each: float | None = None) -> None:
        """Say what is stored from now on, and what that means."""
        if self._told == self._every:
            return
        self._told = every = self._every
        if every >= _NEVER:
            self._inform(
                f"{str(self._budget)!r} is used up at step {index}: from here on no state but the last is stored"
            )
            return
        what = "every state" if every == 1 else f"one state in {every}"
        text = f"{str(self._budget)!r}: from step {index} on {what} is stored"
        if each is not None:
            text += f", {shown_bytes(each)} each"
        passes = every_kth(every, self._prospect).forward_passes
        if passes and self._seconds is not None:
            seconds = passes * self._seconds * (index + (self._remaining(self._seconds) or 0))
            text += f"; rebuilding the others in replay will take about {_duration(seconds)}"
        self._inform(f"{text}. The log has {shown_bytes(self._used)} so far")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def prospect_of(
    trainer: Any, *, state_bytes: int, micro_batches: Sequence[MicroBatch], codec: str, averaged: bool
) -> Prospect:
    """Return what is known of a run when its first step has been taken.

    Args:
        trainer: Inside ``fit``.
        state_bytes: Of the state after that step.
        micro_batches: That this process fed into it.
        codec: Of the states.
        averaged: There will be averaged parameters.
    """
    # Of two gradients the sum does not depend on the order, of more it may.
    repeatable = trainer.world_size <= 2 and (
        trainer.strategy.root_device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    )
    return Prospect(
        state_bytes=state_bytes,
        record_bytes=record_bytes(micro_batches, random_state.capture()) * trainer.world_size,
        codec=codec,
        steps=remaining_steps(trainer, None),
        epochs=trainer.max_epochs,
        repeatable=repeatable,
        averaged=averaged,
    )


def remaining_steps(trainer: Any, seconds: float | None) -> int | None:
    """Return how many steps are still to come; ``None`` if nobody knows.

    Args:
        trainer: Inside ``fit``.
        seconds: That a step takes, to count with the Trainer's ``max_time``.
    """
    steps = expected_steps(trainer, 0)
    left = [t for c in trainer.callbacks if (t := getattr(c, "time_remaining", lambda: None)()) is not None]
    if not left or not seconds:
        return steps
    in_time = max(0, math.ceil(min(left) / seconds))
    return in_time if steps is None else min(steps, in_time)


def record_bytes(micro_batches: Sequence[MicroBatch], now: RandomState) -> int:
    """Return the bytes that the record of a step takes beside the state, at most.

    Args:
        micro_batches: Of the step.
        now: The random states after it; such as have not moved since are stored once for many steps.
    """
    size, states = _DOCUMENT_BYTES, []
    for micro in micro_batches:
        size += _DOCUMENT_BYTES + 8 * len(micro.example_ids)
        size += sum(len(draw.batch()) for draw in micro.draws if draw.batch is not None)
        states += [*(draw.random for draw in micro.draws), micro.transferred_with, micro.stepped_with]
    for before, after in zip(states, (*states[1:], now), strict=True):
        size += sum(len(data) for name, data in after.items() if before.get(name, data) != data)
    return size
