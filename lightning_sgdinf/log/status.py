"""The progress of a run, told by its writer in a few bytes that others can read at any time."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass

from lightning_sgdinf.log.directory import LogDirectory, WritableDirectory
from lightning_sgdinf.log.documents import from_json, to_json, whole

_TELL_SECONDS = 0.5
_RATE_SECONDS = 10.0
_MAX_NUMBER = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The status that a writer tells.

    Attributes:
        steps: Recorded and flushed, those of earlier fits included.
        steps_per_second: Lately.
        plain_bytes: Of the states that were stored, uncompressed.
        expected_steps: When the run will be finished, if that is known.
        updated: Unix time.
    """

    steps: int
    steps_per_second: float
    plain_bytes: int
    expected_steps: int | None
    updated: float


class StatusBoard:
    """Tells of a run now and then.

    Args:
        directory: Held by this process.
        steps: Steps that were there before.
        expected_steps: See `RunStatus`.
    """

    def __init__(self, directory: WritableDirectory, steps: int, expected_steps: int | None) -> None:
        self._directory, self._expected = directory, expected_steps
        self._seen = deque([(time.monotonic(), steps)])
        self._plain_bytes = 0

    def add_state(self, plain_bytes: int) -> None:
        """Count a stored state of so many bytes, uncompressed."""
        self._plain_bytes += plain_bytes

    def tell(self, steps: int) -> None:
        """Tell that so many steps have been flushed."""
        now = time.monotonic()  # the clock on the wall may be set back
        if now - self._seen[-1][0] < _TELL_SECONDS and len(self._seen) > 1:
            return
        self._seen.append((now, steps))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        status = RunStatus(
            steps=steps,
            steps_per_second=(steps - before) / (now - since) if now > since else 0.0,
            plain_bytes=self._plain_bytes,
            expected_steps=self._expected,
            updated=time.time(),
        )
        self._directory.write_status(to_json(asdict(status)))


def read_status(directory: LogDirectory) -> RunStatus | None:
    """Read what the writer has told last; ``None`` if nothing, or just now something else."""
    try:
        told = from_json(directory.status())
        rate, updated, expected = told["steps_per_second"], told["updated"], told["expected_steps"]
        if not all(type(n) in (int, float) and 0 <= n < _MAX_NUMBER for n in (rate, updated)):
            return None
        return RunStatus(
            steps=whole(told["steps"], "steps"),
            steps_per_second=rate,
            plain_bytes=whole(told["plain_bytes"], "plain_bytes"),
            expected_steps=None if expected is None else whole(expected, "expected_steps"),
            updated=updated,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
