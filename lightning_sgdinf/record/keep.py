"""Policies that say which states of a run are stored.

A `Keep` is one question: is the state before this step stored? The first state and the last are stored by every policy
but `Final`, which stores the last alone; of the states it leaves out the log keeps checksums.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.record.budget import Budget, parse_budget


@runtime_checkable
class Keep(Protocol):
    """A policy that says which states are stored. ``str(keep)`` is what the header says and what `parse_keep` reads."""

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Tell if the state before step ``index`` of ``epoch`` (both from 0) is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Store the states before steps ``0, k, 2k, ...``; with ``k = 1`` all of them. ``1/k`` of the bytes.

    Args:
        k: At least 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self.k, "every(k)")

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Tell if ``index`` is a multiple of ``k``."""
        del epoch, max_epochs
        return index % self.k == 0

    def __str__(self) -> str:
        return "every_step" if self.k == 1 else f"every({self.k})"


@dataclass(frozen=True, slots=True)
class LastEpochs:
    """Store the states of the last ``n`` epochs that the Trainer's ``max_epochs`` announces, and the first state.

    Args:
        n: At least 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self.n, "last_epochs(n)")

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Tell if ``epoch`` is one of the last ``n``, or ``index`` is 0."""
        return index == 0 or epoch >= max_epochs - self.n

    def __str__(self) -> str:
        return f"last_epochs({self.n})"


@dataclass(frozen=True, slots=True)
class Final:
    """Store the final state only: enough for what looks at the trained model alone, or replays from the start."""

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Return false: no state before a step is stored."""
        del index, epoch, max_epochs
        return False

    def __str__(self) -> str:
        return "final"


def every(k: int) -> Every:
    """Return the policy that stores every ``k``-th state; the ones between are recomputed when they are needed."""
    return Every(k)


def last_epochs(n: int) -> LastEpochs:
    """Return the policy that stores the states of the last ``n`` epochs."""
    return LastEpochs(n)


def parse_keep(keep: str | Keep | Budget) -> Keep | Budget:
    """Return the policy of a name: ``"every_step"``, ``"every(k)"``, ``"last_epochs(n)"`` or ``"final"``; or a budget,
    ``"budget:2GB"``.

    Raises:
        ConfigurationError: If there is no such policy.
    """
    if not isinstance(keep, str):
        if isinstance(keep, (Keep, Budget)):
            return keep
        raise ConfigurationError(f"keep= is a policy or its name, got {keep!r}. {_POLICIES}")
    if (budget := parse_budget(keep)) is not None:
        return budget
    if keep in ("every_step", "final"):
        return Every(1) if keep == "every_step" else Final()
    match = re.fullmatch(r"(every|last_epochs)\((\d+)\)", keep.replace(" ", ""))
    if match is None:
        raise ConfigurationError(f"unknown keep={keep!r}. {_POLICIES}")
    return (Every if match[1] == "every" else LastEpochs)(int(match[2]))


_POLICIES = "Use 'every_step', 'every(k)', 'last_epochs(n)', 'final', or a size such as 'budget:2GB'."


def _at_least_one(value: Any, what: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{what} needs an integer of at least 1, got {value!r}.")
