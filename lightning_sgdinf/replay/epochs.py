"""Epochs of a recorded run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import ParamGroup, Trajectory


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
    recorded = epochs_of(log)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or not 1 <= epochs <= recorded:
        raise ConfigurationError(f"epochs: expected 1 to {recorded} (the recorded epochs) or 'all', got {epochs!r}.")
    return epoch_start(log, epochs)


def first_draw(log: Trajectory, ids: Collection[int]) -> int:
    """Return the first step whose batch has one of the examples; the length of the log if none has."""
    wanted = set(ids)
    for step in log.steps(0, len(log)):
        if any(wanted.intersection(micro.example_ids.tolist()) for micro in step.micro_batches):
            return step.index
    return len(log)


def epochs_of(log: Trajectory) -> int:
    """Return the number of recorded epochs; one cut short counts as one."""
    return log.step(len(log) - 1).epoch - log.step(0).epoch + 1 if len(log) else 0


def epochs_of_learning(log: Trajectory, amount: float) -> int:
    """Return the fewest last epochs whose learning rates add up to an amount.

    Args:
        log: The record.
        amount: In epochs at the run's largest rate, in ``(0, 1]``.

    Returns:
        At most the number of recorded epochs.
    """
    rates: dict[int, float] = {}
    largest = 0.0
    for step in log.steps(0, len(log)):
        rate = max(_rate(group) for group in step.groups)
        rates[step.epoch] = rates.get(step.epoch, 0.0) + rate
        largest = max(largest, rate)
    wanted, done = amount * largest * len(log) / len(rates), 0.0
    for count, epoch in enumerate(sorted(rates, reverse=True), start=1):
        done += rates[epoch]
        if done >= wanted:
            return count
    return len(rates)


def _rate(group: ParamGroup) -> float:
    rate = group.options.get("lr", 1.0)
    return float(rate) if isinstance(rate, (int, float)) else 1.0
