"""Coalitions asked here, or in several processes; see `lightning_sgdinf.truth.workers`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_sgdinf.truth import Workers
from lightning_sgdinf.valuation.utility import Utility, ask


@runtime_checkable
class Reopened(Protocol):
    """A utility that has to be opened anew in every process, as one of a recorded run must."""

    def reopen(self) -> tuple[Any, Callable[[ExitStack], Utility]]:
        """Return what tells it from others, and a function that can be pickled and opens it."""
        ...


class Asking:
    """Asks a utility here, or in several processes.

    Args:
        utility: What is asked.
        jobs: Number of processes; 1 asks here.

    Raises:
        ConfigurationError: ``jobs`` is below 1.
        MissingExtraError: joblib is not installed, and several processes are asked for.
    """

    def __init__(self, utility: Utility, jobs: int = 1) -> None:
        self.utility, self.jobs = utility, jobs
        self._workers = Workers(jobs)

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return the values ``[M, Q]`` of coalitions ``[M, P]``, in their order.

        Raises:
            ConfigurationError: The utility cannot be sent to another process; says why.
        """
        utility = self.utility
        if self.jobs == 1 or len(coalitions) < 2 * self.jobs:
            return ask(utility, coalitions)
        if isinstance(utility, Reopened) and self._workers.threads:
            return ask(utility, coalitions)  # the model of a recorded run serves one thread of a process
        key, opening = utility.reopen() if isinstance(utility, Reopened) else (None, utility)
        # Interleaved, so that every process gets coalitions of all sizes.
        parts = [coalitions[start :: self.jobs] for start in range(self.jobs)]
        answers = self._workers.map(ask, key, opening, parts)
        values = torch.empty(len(coalitions), answers[0].shape[1], dtype=torch.float64)
        for start, answer in enumerate(answers):
            values[start :: self.jobs] = answer
        return values
