"""The states of a run from last to first, those that were not stored rebuilt in between.

Between two stored states the run is taken forwards again from the earlier one. With room for all states of such a
stretch that is one extra pass of training. With less, some states of the stretch are held while the pieces between them
are rebuilt in turn, by the schedule of `lightning_sgdinf.checkpointing`, which takes the fewest steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lightning_sgdinf.checkpointing import held_in, next_held
from lightning_sgdinf.errors import StateNotStoredError
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.state import ModelState

Advance = Callable[[ModelState, int], ModelState]
"""Takes state ``t`` and ``t`` to state ``t + 1``."""
Arrive = Callable[[int, ModelState, int], None]
"""Told of a stored state ``a``, and of the last state ``t`` that was rebuilt from it: ``(a, state t, t)``; state
``t + 1`` is stored."""


def states_backwards(
    log: Trajectory, start: int, stop: int, advance: Advance, *, max_states: int, arrive: Arrive | None = None
) -> Iterator[tuple[int, ModelState]]:
    """Yield ``(t, state t)`` for ``t = start - 1, ..., stop``.

    Args:
        log: The record.
        start: One past the first state to yield.
        stop: The last state to yield.
        advance: Takes one recorded step.
        max_states: How many states may be in memory at once, at least 3, beside the one that was yielded last.
        arrive: Told of each stretch whose last state was rebuilt, before that is yielded.

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
                f"replays back to step {stop}. Record with keep='every_step', 'every(k)' or 'last_epochs(n)', or "
                "choose an estimator that needs the final state alone (final_parameters)."
            )
        lower = int(below[-1])
        ends = arrive is not None and upper - 1 > lower and upper in stored
        for t, state in retaken_backwards(
            log.state(lower), lower, upper, max(stop, lower), advance, held_in(max_states)
        ):
            if ends and arrive is not None and t == upper - 1:
                arrive(lower, state, t)
            yield t, state
        upper = lower


def retaken_backwards(
    state: ModelState, lower: int, upper: int, stop: int, advance: Advance, held: int
) -> Iterator[tuple[int, ModelState]]:
    """Yield states ``upper - 1 .. stop`` from the state at ``lower``, holding ``held`` at once.

    Args:
        state: The state at ``lower``.
        lower: Its index.
        upper: One past the first state to yield.
        stop: The last state to yield.
        advance: Takes one step.
        held: How many states may be held, at least 1.

    ``kept`` is a stack of held states, by increasing index; each stands for the piece from it to the next one (to
    ``upper`` for the last). The last piece is walked until its last state, ``upper - 1``, is reached.
    """
    for t in range(lower, stop):
        state = advance(state, t)
    kept = [(stop, state)]
    while kept:
        t, state = kept[-1]
        # Steps to the next state to hold; 0 if the piece is one state long, which is then the one to yield.
        ahead = next_held(upper - t, held - len(kept) + 1)
        for earlier in range(t, t + ahead):
            state = advance(state, earlier)
        t += ahead
        if t < upper - 1:
            kept.append((t, state))  # what lies behind it comes first
            continue
        if not ahead:
            kept.pop()
        yield t, state
        upper = t  # the piece ends before it; the states in between were not held, and are rebuilt when they are due
