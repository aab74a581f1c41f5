"""The binomial schedule: visit a stretch of states backwards while only a few are held in memory.

Of a stretch of ``n`` states only the first is stored, and ``s`` can be held at once. Griewank and Walther ("Algorithm
799: revolve", ACM Transactions on Mathematical Software 26, 2000): with ``r`` the smallest number for which
``n <= C(s + r, r)``, no step need be taken more than ``r`` times, the steps taken are

    n r - C(s + r, r - 1),

and no schedule takes fewer. So with 100 states held, a stretch of 5,000 is visited with each step taken twice at most,
and one of 170,000 with three times.
"""

from __future__ import annotations

from math import comb

MEMORY_BYTES = 1 << 30
"""Memory for states that are rebuilt, unless somebody says otherwise."""

_UNDER_WAY = 2  # states in memory beside those held: one from which a step is taken, and what it leads to


def held_in(max_states: int) -> int:
    """Return how many states can be held where ``max_states`` may be in memory at once."""
    return max(1, max_states - _UNDER_WAY)


def states_in(memory_bytes: int, state_bytes: int) -> int:
    """Return how many states of a size may be in memory at once, at least 3."""
    return max(3, memory_bytes // max(state_bytes, 1))


def repetitions(count: int, held: int) -> int:
    """Return how often a step of a stretch of ``count`` states is taken at most."""
    times = 0
    while comb(held + times, times) < count:
        times += 1
    return times


def steps_again(count: int, held: int) -> int:
    """Return how many steps are taken to visit a stretch of ``count`` states, at least 1."""
    times = repetitions(count, held)
    return times * count - (comb(held + times, times - 1) if times else 0)


def next_held(count: int, held: int) -> int:
    """Return the distance of the next state to hold from the first of ``count`` states, of which ``held`` can be held,
    the first included; ``count - 1`` if none can."""
    if count == 1 or held == 1:
        return count - 1
    times = repetitions(count, held)
    return min(comb(held + times - 1, times - 1), count - comb(held + times - 2, times - 1))
