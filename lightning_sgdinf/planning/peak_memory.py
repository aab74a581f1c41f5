"""The peak of a process's memory while something runs, by looking at it again and again."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from types import TracebackType

import torch

_STATM = Path("/proc/self/statm")
_SECONDS = 0.005


def resident_bytes() -> int | None:
    """Return the resident set of this process; ``None`` where the system does not say (only Linux does)."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


class PeakMemory:
    """A context in which the largest memory is noted: of the device where that is a CUDA one, else the resident set.

    Args:
        device: What is computed on.

    Attributes:
        peak: The largest so far, bytes; ``None`` where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.peak = resident_bytes()

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self.peak is not None:
            self._thread = threading.Thread(target=self._look, name="peak memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
        if self._thread is not None:
            self._over.set()
            self._thread.join()

    def _look(self) -> None:
        while True:
            over = self._over.wait(_SECONDS)
            self.peak = max(self.peak or 0, resident_bytes() or 0)
            if over:
                return
