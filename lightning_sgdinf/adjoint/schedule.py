"""The states of a run from last to first, those that were not stored rebuilt in between.

Between two stored states the run is taken forwards again from the earlier one. With room for all states of such a
stretch that is one extra pass of training; with less room, evenly spaced states of the stretch are kept and the pieces
between them rebuilt in turn, which costs one more pass per level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lightning_sgdinf.errors import StateNotStoredError
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState

Advance = Callable[[ModelState, int], ModelState]
"""Takes state ``t`` and ``t`` to state ``t + 1``."""


def states_backwards(
    log: Trajectory, start: int, stop: int, advance: Advance, *, room: int
) -> Iterator[tuple[int, ModelState]]:
    """Yield ``(t, state t)`` for ``t = start - 1, ..., stop``.

    Args:
        log: The record.
        start: One past the first state to yield.
        stop: The last state to yield.
        advance: Takes one recorded step.
        room: How many states may be held at once, at least 3.

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
        if upper - lower == 1:
            yield lower, log.state(lower)
        else:
            yield from _rebuilt(log.state(lower), lower, upper, max(stop, lower), advance, max(room, 3))
        upper = lower
        if upper <= stop:
            return


def _rebuilt(
    base: ModelState, lower: int, upper: int, stop: int, advance: Advance, room: int
) -> Iterator[tuple[int, ModelState]]:
    """States ``upper - 1 .. stop`` from the state at ``lower``."""
    count = upper - lower
    if count > room and room < 3:  # no room to keep any: each anew from the base
        for t in range(upper - 1, max(stop, lower) - 1, -1):
            state = base
            for earlier in range(lower, t):
                state = advance(state, earlier)
            yield t, state
        return
    kept = max(2, room // 2)
    spacing = 1 if count <= room else -(-count // kept)
    marks: list[tuple[int, ModelState]] = [(lower, base)]
    state = base
    last = lower + (count - 1) // spacing * spacing
    for t in range(lower, last):
        state = advance(state, t)
        if (t + 1 - lower) % spacing == 0:
            marks.append((t + 1, state))
    while marks:
        t, state = marks.pop()
        if t + 1 < upper:
            yield from _rebuilt(state, t, upper, max(stop, t), advance, room - kept)
        elif t >= stop:
            yield t, state
        upper = t
        if upper <= stop:
            return
