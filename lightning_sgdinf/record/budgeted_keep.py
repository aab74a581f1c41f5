r"""Which states are stored under a budget, while the run is under way.

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
from collections.abc import Callable
from typing import Protocol

from lightning_sgdinf.record.budget import Budget, Prospect, every_kth, make_plan, shown_bytes

_MARGIN = 1 / 16  # of the budget, for a run that gets longer
_UNPLANNED = 8  # times as long as it is, a run of unknown length may get without its records outgrowing the budget
_FIRST_LOOK = 16
_NEVER = 1 << 62


class Sizes(Protocol):
    """How large a log is: all of it, and the states that were stored."""

    @property
    def total(self) -> int:
        """Bytes of all files."""
        ...

    @property
    def states(self) -> int:
        """Bytes of stored states."""
        ...


class BudgetedKeep:
    """A plan in use; a `Keep` for one run.

    Args:
        budget: The bytes.
        prospect: What is known of the run.
        measure: Says how large the log is; waits for everything to be written.
        remaining: Is given the seconds that a step takes, once that is known, and says how many are still to come:
            ``None`` if nobody knows, 0 if none should.
        inform: Called with a sentence when something has been measured or changed.
        clock: Seconds.
    """

    def __init__(
        self,
        budget: Budget,
        prospect: Prospect,
        *,
        measure: Callable[[], Sizes],
        remaining: Callable[[float | None], int | None] = lambda seconds: None,
        inform: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = make_plan(budget, prospect)
        self._budget, self._prospect = budget, prospect
        self._measure, self._remaining, self._inform, self._clock = measure, remaining, inform, clock
        self._every = self.plan.every
        self._told = 0  # the spacing that was told last
        self._begun: tuple[int, Sizes, float] | None = None  # first step, what was there before, and when
        self._seconds: float | None = None  # that a step takes
        self._used = 0  # bytes of the log, at most
        self._record_bytes = float(prospect.record_bytes)
        self._stored = 0
        self._last: int | None = None  # the last stored state
        self._next_look = _NEVER
        self._outlived = False  # whether the run has got longer than anybody knew

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Whether the state before step ``index`` is stored."""
        if not self.plan.every:
            return False
        if self._begun is None:
            sizes = self._measure()
            self._begun = index, sizes, self._clock()
            self._used, self._next_look = sizes.total, index + _FIRST_LOOK
        self._used += round(self._record_bytes)
        outlived = not self._outlived and self._remaining(self._seconds) == 0
        self._outlived |= outlived
        if outlived or index >= self._next_look:
            self._look(index)
        if self.plan.last_epochs and epoch < max_epochs - self.plan.last_epochs:
            return False
        if self._last is not None and index < self._last + self._every:
            return False
        if not self._fits(index):
            self._look(index)
            if not self._fits(index):
                self._every = _NEVER
                self._tell(index)
                return False
        self._used += self._prospect.largest_bytes
        self._stored += 1
        self._last = index
        return True

    def _fits(self, index: int) -> bool:
        """Whether a state can be stored and everything still be recorded that is to come."""
        return self._free(index) >= self._prospect.largest_bytes

    def _free(self, index: int) -> float:
        """Bytes of the budget that neither the log has nor its end and the records to come will need."""
        to_come = self._remaining(self._seconds) or _UNPLANNED * (index + 1)
        return self._budget.size_bytes - self._used - self._prospect.ending_bytes - to_come * self._record_bytes

    def _look(self, index: int) -> None:
        """Measure, and plan what is to come anew."""
        assert self._begun is not None
        first, before, since = self._begun
        sizes = self._measure()
        self._used = sizes.total
        states = sizes.states - before.states
        if taken := index - first:
            self._record_bytes = max(0.0, (sizes.total - before.total - states) / taken)
            self._seconds = (self._clock() - since) / taken
        known = self._remaining(self._seconds)
        self._next_look = index + max(_FIRST_LOOK, min(taken, known // 8 if known else taken))
        if self.plan.last_epochs:
            return
        each = states / self._stored if self._stored else self._prospect.expected_bytes(1)
        self._every = self._spacing(index, each)
        if not self._told or not self._told / 2 < self._every < self._told * 2:
            self._tell(index, each)

    def _spacing(self, index: int, each: float) -> int:
        """How many steps apart states can be stored from now on, if one takes ``each`` bytes."""
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
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
