"""The states of a run from last to first, those that were not stored rebuilt in between.

Between two stored states the run is taken forwards again from the earlier one. With room for all states of such a
stretch that is one extra pass of training. With less, some states of the stretch are held while the pieces between them
are rebuilt in turn. Which ones follows the binomial schedule (Griewank and Walther, "Algorithm 799: revolve", ACM
Transactions on Mathematical Software 26, 2000): with ``s`` states held, stretches of up to ``C(s + r, r)`` states need
no step more than ``r`` times, and no schedule takes fewer steps. So room for 100 states takes a stretch of 5,000 with
each step done twice at most, and one of 170,000 with three times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb

import numpy as np

from lightning_sgdinf.errors import StateNotStoredError
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState

Advance = Callable[[ModelState, int], ModelState]
"""Takes state ``t`` and ``t`` to state ``t + 1``."""

_UNDER_WAY = 2  # states in memory beside those held: one from which a step is taken, and what it leads to


def states_backwards(
    log: Trajectory, start: int, stop: int, advance: Advance, *, room: int
) -> Iterator[tuple[int, ModelState]]:
    """Yield ``(t, state t)`` for ``t = start - 1, ..., stop``.

    Args:
        log: The record.
        start: One past the first state to yield.
        stop: The last state to yield.
        advance: Takes one recorded step.
        room: How many states may be in memory at once, at least 3, beside the one that was yielded last.

    Raises:
        StateNotStoredError: If no state at or before ``stop`` is stored; says which ``keep=`` stores it.
    """
    stored = np.asarray(log.state_indices)
    upper = start
    while upper > stop:
        below = stored[stored < upper]
        if not len(below):
            raise StateNotStoredError(
                f"the log stores no state at or before step {upper - 1} (keep={log.header.keep!r}), and this estimator "
                f"walks back to step {stop}. "
                "Record with keep='every_step' or keep='every(k)', or choose an estimator that needs fewer states "
                "(last_epochs, final_parameters)."
            )
        lower = int(below[-1])
        yield from _stretch(log.state(lower), lower, upper, max(stop, lower), advance, _held(room))
        upper = lower


def steps_again(count: int, room: int) -> int:
    """How many steps are taken again to visit a stretch of ``count`` states of which the first is stored.

    Args:
        count: At least 1.
        room: How many states may be in memory at once, at least 3, beside the one that was yielded last.
    """
    held = _held(room)
    times = _times(count, held)
    return times * count - (comb(held + times, times - 1) if times else 0)


def _stretch(
    state: ModelState, lower: int, upper: int, stop: int, advance: Advance, held: int
) -> Iterator[tuple[int, ModelState]]:
    """States ``upper - 1 .. stop`` from the state at ``lower``."""
    for t in range(lower, stop):
        state = advance(state, t)
    kept = [(stop, state)]
    while kept:
        t, state = kept[-1]
        ahead = _ahead(upper - t, held - len(kept) + 1)
        for earlier in range(t, t + ahead):
            state = advance(state, earlier)
        t += ahead
        if t < upper - 1:
            kept.append((t, state))
            continue
        if not ahead:
            kept.pop()
        yield t, state
        upper = t


def _ahead(count: int, held: int) -> int:
    """How far to go on from the first of ``count`` states, with room to hold ``held`` of them, the first included."""
    if count == 1 or held == 1:
        return count - 1
    times = _times(count, held)
    return min(comb(held + times - 1, times - 1), count - comb(held + times - 2, times - 1))


def _times(count: int, held: int) -> int:
    """How often a step of a stretch must be taken at most, ``r`` with ``count <= C(held + r, r)``."""
    times = 0
    while comb(held + times, times) < count:
        times += 1
    return times


def _held(room: int) -> int:
    return max(1, room - _UNDER_WAY)
