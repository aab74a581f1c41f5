"""Sets of examples to leave out, and the step at which each run leaves the recorded one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.replay import refuse_changes


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Sets of examples to leave out of a run.

    Attributes:
        sets: The ``M`` sets, by example id.
        examples: ``N``.
        first: The step at which each set's first example is drawn, int64 ``[M]``; ``stop`` if none is.
        start: The step from which examples are left out.
        stop: The query is asked before this step.
    """

    sets: tuple[tuple[int, ...], ...]
    examples: int
    first: np.ndarray
    start: int
    stop: int

    @property
    def cost(self) -> np.ndarray:
        """Return the number of training steps that the run of each set takes, int64 ``[M]``."""
        return self.stop - self.first

    def ordered(self, numbers: Iterable[int]) -> list[int]:
        """Return numbers of sets in the order in which their runs leave the recorded one."""
        return sorted((int(i) for i in numbers), key=lambda i: (self.first[i], i))

    def keep(self, numbers: Sequence[int]) -> Tensor:
        """Return which examples the runs of some sets train on, bool ``[len(numbers), N]``."""
        keep = torch.ones(len(numbers), self.examples, dtype=torch.bool)
        for row, number in enumerate(numbers):
            keep[row, list(self.sets[number])] = False
        return keep


def make_plan(
    log: Trajectory,
    examples: int,
    leave_out: Iterable[Iterable[int]] | None,
    *,
    first_step: int = 0,
    last_step: int | None = None,
) -> Plan:
    """Check sets and steps, and find where each run leaves the recorded one.

    Args:
        log: The record.
        examples: ``N``.
        leave_out: Sets of example ids; ``None`` for every single example.
        first_step: The step from which they are left out.
        last_step: The query is asked before this step; at the end if ``None``.

    Raises:
        ConfigurationError: Sets or steps out of range.
        UnsupportedRunError: Something other than the optimizer changed the state on the way.
    """
    total = len(log)
    stop = total if last_step is None else last_step
    if not 0 <= first_step < stop <= total:
        raise ConfigurationError(
            f"first_step and last_step: expected 0 <= first_step < last_step <= {total}, the length of the log, got "
            f"{first_step} and {stop}"
        )
    given: Iterable[Iterable[int]] = ((j,) for j in range(examples)) if leave_out is None else leave_out
    try:
        sets = tuple(tuple(sorted({index(j) for j in ids})) for ids in given)
    except TypeError as error:
        raise ConfigurationError(
            f"leave_out: expected sets of example ids, as [[3], [5, 8]] to leave out 3, then 5 and 8 together ({error})"
        ) from error
    for number, ids in enumerate(sets):
        if not ids or ids[0] < 0 or ids[-1] >= examples:
            raise ConfigurationError(
                f"leave_out: expected sets of ids in 0 .. {examples - 1}, at least one id in each, got "
                f"{list(ids[:1] + ids[-1:])} in set {number}"
            )
    if not sets:
        raise ConfigurationError("leave_out: expected at least one set of examples, got none")
    first = first_drawn(log, examples, first_step=first_step, last_step=stop)
    return Plan(sets, examples, np.array([first[list(ids)].min() for ids in sets]), first_step, stop)


def first_drawn(log: Trajectory, examples: int, *, first_step: int, last_step: int) -> np.ndarray:
    """Return the step at which each example is first drawn, ``last_step`` for those that are not, int64 ``[N]``.

    Raises:
        UnsupportedRunError: Something other than the optimizer changed the state on the way.
    """
    first = np.full(examples, last_step)
    for step in log.steps(first_step, last_step):
        if step.index > first_step:
            refuse_changes(step)
        first[step.example_ids] = np.minimum(first[step.example_ids], step.index)
    return first
