"""The progress of a run, asked from another process; nothing here touches the files that the writer writes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lightning_sgdinf.log.directory import LogDirectory
from lightning_sgdinf.log.end_mark import read_end_mark
from lightning_sgdinf.log.status import read_status


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All that can be said of a run that goes on.

    Attributes:
        going_on: Its writer is alive.
        ended: Reason of its end; empty if it has not ended.
        steps: Recorded steps that are safe.
        size_bytes: Of the log now.
        expected_steps: When it will be finished, if that is known.
        steps_per_second: Lately.
    """

    going_on: bool
    ended: str
    steps: int
    size_bytes: int
    expected_steps: int | None = None
    steps_per_second: float = 0.0

    @property
    def expected_bytes(self) -> float | None:
        """Size of the finished log, if it goes on as it did."""
        if not self.steps or self.expected_steps is None:
            return None
        return self.size_bytes / self.steps * max(self.steps, self.expected_steps)

    @property
    def seconds_left(self) -> float | None:
        """Time to the end, if it goes on as it did lately."""
        if self.expected_steps is None or not self.steps_per_second:
            return None
        return max(0, self.expected_steps - self.steps) / self.steps_per_second

    def __str__(self) -> str:
        if self.ended:
            return f"{self.steps} steps, {readable_bytes(self.size_bytes)}; ended: {self.ended}"
        total = f" of {self.expected_steps} ({self._percent:.0f} %)" if self.expected_steps else ""
        parts = [f"step {self.steps}{total}"]
        if self.going_on:
            parts.append(f"{self.steps_per_second:.3g} steps/s")
        parts.append(readable_bytes(self.size_bytes))
        if self.expected_bytes is not None:
            parts.append(f"about {readable_bytes(self.expected_bytes)} at the end")
        if self.going_on and self.seconds_left is not None:
            parts.append(f"{readable_seconds(self.seconds_left)} left")
        return ", ".join(parts) + (
            "" if self.going_on else "; its writer is gone: `sgdinf-log recover` seals what it left"
        )

    @property
    def _percent(self) -> float:
        return 100 * self.steps / self.expected_steps if self.expected_steps else 0.0


def progress(path: str | os.PathLike[str]) -> Progress:
    """Return the progress of the run of a log.

    Raises:
        LogNotFoundError: There is no log yet.
        LogCorruptError: Its end mark is damaged.
    """
    directory = LogDirectory(path)
    directory.require()
    going_on = directory.is_being_written()
    if not going_on and directory.has_end:
        end = read_end_mark(directory.end)
        return Progress(going_on=False, ended=end.reason, steps=end.steps, size_bytes=directory.size_bytes())
    told = read_status(directory)
    if told is None:
        return Progress(going_on=going_on, ended="", steps=0, size_bytes=directory.size_bytes())
    return Progress(
        going_on=going_on,
        ended="",
        steps=told.steps,
        size_bytes=directory.size_bytes(),
        expected_steps=told.expected_steps,
        steps_per_second=told.steps_per_second,
    )


def watch(
    path: str | os.PathLike[str], *, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Progress]:
    """Yield the progress again and again, until the run has ended or its writer is gone.

    Raises:
        LogNotFoundError: There is no log yet.
    """
    while True:
        latest = progress(path)
        yield latest
        if not latest.going_on:
            return
        sleep(seconds)


def readable_bytes(size: float) -> str:
    """Return a size for people: ``1234567`` -> ``"1.235 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def readable_seconds(seconds: float) -> str:
    """Return a time for people: ``5400`` -> ``"90 min"``."""
    if seconds < 90:
        return f"{seconds:.2g} s" if 0 < seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
