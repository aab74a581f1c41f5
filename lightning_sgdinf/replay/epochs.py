"""Epochs of a recorded run."""

from __future__ import annotations

from typing import Literal

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Trajectory


def epoch_start(log: Trajectory, epochs: int) -> int:
    """Return the first step of the last ``epochs`` epochs of a run; 0 if there were no more.

    An epoch cut short by ``max_steps`` counts as one.
    """
    if len(log) == 0:
        return 0
    last = log.step(len(log) - 1).epoch
    wanted = last - epochs + 1
    low, high = 0, len(log)
    while low < high:  # epochs never decrease along a run
        middle = (low + high) // 2
        if log.step(middle).epoch < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def first_step_of(log: Trajectory, epochs: int | Literal["all"]) -> int:
    """Return the first step of the last ``epochs`` epochs, or of all.

    Raises:
        ConfigurationError: The run has no step, or not so many epochs.
    """
    if len(log) == 0:
        raise ConfigurationError("training again: expected a run with one recorded step or more, got none.")
    if epochs == "all":
        return 0
    recorded = log.step(len(log) - 1).epoch - log.step(0).epoch + 1
    if isinstance(epochs, bool) or not isinstance(epochs, int) or not 1 <= epochs <= recorded:
        raise ConfigurationError(f"epochs: expected 1 to {recorded} (the recorded epochs) or 'all', got {epochs!r}.")
    return epoch_start(log, epochs)
