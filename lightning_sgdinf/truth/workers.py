"""Work shared out to processes, or to machines, by whatever backend joblib has been told to use.

``joblib.parallel_config(backend="dask")`` around a call, or Ray's, takes the place of loky's processes on this machine.
What every piece of work needs, such as a recorded run, is opened once in a process and stays open there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.extras import require

Opening = Callable[[ExitStack], Any]
"""Opens what work needs, in the process that does it; can be pickled."""


class Workers:
    """Some processes that work side by side.

    Args:
        jobs: Their number, at least 1. More than there are machines for is joblib's to refuse.

    Raises:
        ConfigurationError: ``jobs`` is below 1.
        MissingExtraError: joblib is not installed, and several processes are asked for.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise ConfigurationError(f"jobs: expected a number of processes of at least 1, got {jobs}")
        self.jobs = jobs
        self._joblib = require("joblib", extra="parallel") if jobs > 1 else None
        self._pool: Any = None

    @property
    def apart(self) -> bool:
        """Return true if there are several, and not threads of one process, which share the model of a recorded run."""
        return self._joblib is not None and not self.threads

    @property
    def threads(self) -> bool:
        """Return true if the backend's workers are threads."""
        if self._joblib is None:
            return False
        return bool(getattr(self._joblib.parallel.get_active_backend()[0], "uses_threads", False))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the processes, and what they have opened, from one call of `map` to the next."""
        assert self._joblib is not None
        try:
            with self._joblib.Parallel(n_jobs=self.jobs) as self._pool:
                yield
        finally:
            self._pool = None

    def map(self, work: Callable[[Any, Any], Any], key: Any, opening: Any, parts: Sequence[Any]) -> list[Any]:
        """Return what is made of each part, in their order.

        Args:
            work: Called with what was opened and a part.
            key: Tells what is opened from anything else; ``None`` if ``opening`` is what is needed, as it is.
            opening: See `Opening`.
            parts: One for each process.

        Raises:
            ConfigurationError: Something cannot be sent to another process; says what.
        """
        assert self._joblib is not None
        call = self._joblib.delayed(_work_there)
        try:
            pool = self._pool or self._joblib.Parallel(n_jobs=self.jobs)
            return pool(call(work, key, opening, part) for part in parts)
        except SgdInfluenceError:
            raise
        except Exception as error:  # of pickle's, of the objects that do not let themselves be pickled, or of the pool
            if re.search("pickl|serializ", f"{type(error).__name__} {error}"):
                raise _not_sent(error) from error
            raise


def _not_sent(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"jobs: the run, its data and its query are sent to other processes, which failed: {type(error).__name__}: "
        f"{str(error)[:500]}. Define model, data set and query at the top level of a module, give the log by its path, "
        "or use jobs=1."
    )


_held: tuple[Any, ExitStack, Any] | None = None  # in a worker process: what it opened last


def _work_there(work: Callable[[Any, Any], Any], key: Any, opening: Any, part: Any) -> Any:
    """Work in a process; what it opened stays open there from one call to the next."""
    global _held
    if key is None:
        return work(opening, part)
    if _held is None or _held[0] != key:
        if _held is not None:
            _held[1].close()
            _held = None
        stack = ExitStack()
        _held = key, stack, opening(stack)
    return work(_held[2], part)
