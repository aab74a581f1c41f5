"""A run in which parameters were freed on the way, seen with all of them from the first state on.

A parameter that joins the optimizer is in the state from then on; before that nothing trained it, so that its value is
the one it joined with. One that was moved by something else meanwhile has no known value before.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import StateNotStoredError
from lightning_sgdinf.log.records import Header
from lightning_sgdinf.log.seen import SeenLog
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState


class WithLateParameters(SeenLog):
    """A recorded run whose states hold every parameter that was trained at any time.

    Args:
        log: The record.

    Attributes:
        joined: For each parameter that was not trained from the beginning, the state with which it joined.
    """

    def __init__(self, log: Trajectory) -> None:
        super().__init__(log)
        known = {name for name, _, _ in log.header.parameters}
        stored = log.state_indices.tolist()
        last = log.state(stored[-1]).params if stored else {}
        self.joined: dict[str, int] = {}
        self._values: dict[str, Tensor] = {}
        for name in last:
            if name not in known:
                at = self._first_with(name, stored)
                self.joined[name], self._values[name] = at, log.state(at).params[name]
        self._moved = {n for n, t in self.joined.items() if t < len(log) and f"param {n}" in log.step(t).changed}
        late = tuple((n, tuple(v.shape), dtype_name(v.dtype)) for n, v in self._values.items())
        self._header = replace(log.header, parameters=(*log.header.parameters, *late))

    @property
    def header(self) -> Header:
        """The record's header, with all parameters."""
        return self._header

    def state(self, index: int) -> ModelState:
        """Return a stored state, with the parameters that joined later.

        Raises:
            StateNotStoredError: One of them was moved by something else before it joined.
        """
        state = self._log.state(index)
        late = [name for name, at in self.joined.items() if index < at]
        if unknown := [name for name in late if name in self._moved]:
            raise StateNotStoredError(
                f"state {index}: what {unknown[0]} was is not known; something other than the optimizer changed it "
                f"before step {self.joined[unknown[0]]}, and it is recorded from there on. Stay behind that step "
                "(last_epochs), or choose an estimator that needs the final state alone (final_parameters)."
            )
        return replace(state, params={**state.params, **{n: self._values[n].clone() for n in late}})

    def recorded_part(self, index: int, state: ModelState) -> ModelState:
        """Return the part of state ``index`` that the log has recorded."""
        return replace(state, params={n: v for n, v in state.params.items() if self.joined.get(n, 0) <= index})

    def _first_with(self, name: str, stored: list[int]) -> int:
        """Return the first stored state with a parameter: once it is in one, it is in all that follow."""
        low, high = 0, len(stored) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if name in self._log.state(stored[middle]).params else (middle + 1, high)
        return stored[low]


def with_late_parameters(log: Trajectory) -> Trajectory:
    """Return a run with every parameter that was trained at any time in every state; itself if that is so already."""
    stored = log.state_indices
    known = {name for name, _, _ in log.header.parameters}
    if not len(stored) or log.state(int(stored[-1])).params.keys() <= known:
        return log
    return WithLateParameters(log)


def recorded_part(log: Trajectory, index: int, state: ModelState) -> ModelState:
    """Return the part of a state that a log has recorded at an index, so that checksums can be compared."""
    if isinstance(log, SeenLog):
        state = log.recorded_part(index, state) if isinstance(log, WithLateParameters) else state
        return recorded_part(log.inner, index, state)
    return state


def recorded_state(log: Trajectory, index: int) -> ModelState:
    """Return a stored state as it was recorded, whatever a log is seen through."""
    if isinstance(log, SeenLog) and index in log.inner.state_indices:  # else it is one that was rebuilt
        return recorded_state(log.inner, index)
    return log.state(index)
