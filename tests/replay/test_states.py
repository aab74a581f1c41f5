"""The order in which states are visited, and what is rebuilt for it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sgdinf.checkpointing import repetitions, steps_again
from lightning_sgdinf.errors import StateNotStoredError
from lightning_sgdinf.replay.states import states_backwards


class State:
    """A state that knows its time; how many are alive is counted."""

    alive: ClassVar[weakref.WeakSet[State]] = weakref.WeakSet()

    def __init__(self, time: int) -> None:
        self.time = time
        State.alive.add(self)


class Log:
    """Stored states, and a journal of what was asked for."""

    def __init__(self, *stored: int) -> None:
        self.state_indices = stored
        self.journal: list[str] = []
        self.most = 0
        self.header = type("Header", (), {"keep": "last_epochs(1)"})

    def state(self, index: int) -> State:
        assert index in self.state_indices
        self.journal.append(f"read {index}")
        return State(index)

    def advance(self, state: State, t: int) -> State:
        assert state.time == t
        self.journal.append(f"+{t}")
        after = State(t + 1)
        self.most = max(self.most, len(State.alive))
        return after

    def walk(self, start: int, stop: int, max_states: int) -> Iterator[int]:
        for t, state in states_backwards(self, start, stop, self.advance, max_states=max_states):
            assert state.time == t
            self.most = max(self.most, len(State.alive))
            self.journal.append(f"({t})")
            yield t

    def order(self, start: int, stop: int, max_states: int = 100) -> str:
        list(self.walk(start, stop, max_states))
        return " ".join(self.journal)


def test_dense_states_are_read_one_by_one() -> None:
    assert Log(0, 1, 2, 3).order(3, 0) == "read 2 (2) read 1 (1) read 0 (0)"


def test_every_third_state() -> None:
    assert Log(0, 3, 6, 7).order(7, 0) == "read 6 (6) read 3 +3 +4 (5) (4) (3) read 0 +0 +1 (2) (1) (0)"


def test_nothing_before_the_last_visited_state_is_read() -> None:
    assert Log(0, 3, 6).order(6, 4) == "read 3 +3 +4 (5) (4)"
    assert Log(0, 3, 6).order(6, 3) == "read 3 +3 +4 (5) (4) (3)"


def test_little_room_goes_over_pieces_again() -> None:
    assert Log(0, 6).order(6, 0, max_states=4) == "read 0 +0 +1 +2 +3 +4 (5) +3 (4) (3) +0 +1 (2) (1) (0)"


def test_hardly_any_room() -> None:
    assert Log(0, 3).order(3, 0, max_states=1) == "read 0 +0 +1 (2) +0 (1) (0)"  # never fewer than three


@cache
def fewest(count: int, held: int) -> int:
    """Return the steps of the best schedule there is, by trying all."""
    if held == 1:
        return count * (count - 1) // 2
    options = (m + fewest(count - m, held - 1) + fewest(m, held) for m in range(1, count))
    return min(options, default=0)


@pytest.mark.parametrize("max_states", [3, 4, 6, 9])
def test_no_schedule_takes_fewer_steps(max_states: int) -> None:
    for count in (1, 2, 3, 7, 20, 41, 60):
        log = Log(0, count)
        list(log.walk(count, 0, max_states))
        taken = sum(entry.startswith("+") for entry in log.journal)
        assert taken == fewest(count, max_states - 2) == steps_again(count, max_states - 2)


def test_room_for_few_states_takes_long_stretches() -> None:
    assert steps_again(100, 100) == 99  # max_states for all of them: each missing state once
    assert [repetitions(n, 100) for n in (1, 101, 5_151, 176_851)] == [0, 1, 2, 3]
    assert steps_again(5_151, 100) < 2 * 5_151


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_every_state_once_in_falling_order_within_the_room(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40))
    stored = data.draw(st.sets(st.integers(1, total - 1)) if total > 1 else st.just(set())) | {0, total}
    max_states = data.draw(st.integers(1, 12))
    stop = data.draw(st.integers(0, total - 1))
    log = Log(*sorted(stored))
    State.alive.clear()
    assert list(log.walk(total, stop, max_states)) == list(range(total - 1, stop - 1, -1))
    assert log.most <= max(max_states, 3) + 1  # the one visited last is the visitor's


@pytest.mark.parametrize("gap", [2, 5, 9])
def test_with_room_each_missing_state_is_rebuilt_once(gap: int) -> None:
    log = Log(*range(0, 37, gap), 37)
    list(log.walk(37, 0, max_states=gap + 1))
    rebuilt = [entry for entry in log.journal if entry.startswith("+")]
    assert len(rebuilt) == len(set(rebuilt)) == 37 - len(range(0, 37, gap))


def test_says_which_keep_would_have_stored_the_state() -> None:
    with pytest.raises(
        StateNotStoredError, match=r"no state at or before step 3 .*last_epochs\(1\).*keep='every_step'"
    ):
        Log(4, 5, 6).order(6, 0)
