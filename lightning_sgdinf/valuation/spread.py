"""Coalitions asked in several processes, or on several machines, by whatever backend joblib has been told to use.

``joblib.parallel_config(backend="dask")`` around a call, or Ray's, takes the place of loky's processes on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.extras import require
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
        jobs: Number of processes; 1 asks here. More than there are machines for is joblib's to refuse.

    Raises:
        ConfigurationError: ``jobs`` is below 1.
        MissingExtraError: joblib is not installed, and several processes are asked for.
    """

    def __init__(self, utility: Utility, jobs: int = 1) -> None:
        if jobs < 1:
            raise ConfigurationError(f"jobs: expected a number of processes of at least 1, got {jobs}")
        self.utility, self.jobs = utility, jobs
        self._joblib = require("joblib", extra="parallel") if jobs > 1 else None

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return the values ``[M, Q]`` of coalitions ``[M, P]``, in their order.

        Raises:
            ConfigurationError: The utility cannot be sent to another process; says why.
        """
        if self._joblib is None or len(coalitions) < 2 * self.jobs:
            return ask(self.utility, coalitions)
        utility = self.utility
        backend, _ = self._joblib.parallel.get_active_backend()
        if isinstance(utility, Reopened) and getattr(backend, "uses_threads", False):
            return ask(utility, coalitions)  # the model of a recorded run serves one thread of a process
        key, opening = utility.reopen() if isinstance(utility, Reopened) else (None, utility)
        # Interleaved, so that every process gets coalitions of all sizes.
        parts = [coalitions[start :: self.jobs] for start in range(self.jobs)]
        call = self._joblib.delayed(_ask_there)
        try:
            answers = self._joblib.Parallel(n_jobs=self.jobs)(call(key, opening, part) for part in parts)
        except SgdInfluenceError:
            raise
        except Exception as error:  # of pickle's, of the objects that do not let themselves be pickled, or of the pool
            if re.search("pickl|serializ", f"{type(error).__name__} {error}"):
                raise _not_sent(error) from error
            raise
        values = torch.empty(len(coalitions), answers[0].shape[1], dtype=torch.float64)
        for start, answer in enumerate(answers):
            values[start :: self.jobs] = answer
        return values


def _not_sent(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"jobs: the run, its data and its query are sent to other processes, which failed: {type(error).__name__}: "
        f"{str(error)[:500]}. Define model, data set and query at the top level of a module, give the log by its path, "
        "or use jobs=1."
    )


_held: tuple[Any, ExitStack, Utility] | None = None  # in a worker process: what it opened last


def _ask_there(key: Any, opening: Any, coalitions: Tensor) -> Tensor:
    """Ask in a worker; a recorded run stays open there from one call to the next."""
    global _held
    if key is None:
        return ask(opening, coalitions)
    if _held is None or _held[0] != key:
        if _held is not None:
            _held[1].close()
            _held = None
        stack = ExitStack()
        _held = key, stack, opening(stack)
    return ask(_held[2], coalitions)
