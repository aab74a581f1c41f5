"""Collect what speaks against a recording: told while it still saves time, and written down in any case."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.plain_text import printable


class Diagnostics:
    """Reasons why a run cannot be replayed, and lesser remarks.

    Args:
        strict: Raise on a reason that turns up before the first step is complete. Later ones never stop the training.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._reasons: list[str] = []
        self._remarks: list[str] = []
        self._late: list[str] = []
        self._told: set[str] = set()
        self._header_written = False

    def problem(self, reason: str) -> None:
        """Report something that makes replay impossible; ``reason`` is a sentence (or two) without the last full stop.

        Raises:
            UnsupportedRunError: If strict, and nothing has been recorded yet.
        """
        if reason in self._reasons:
            return
        if self._header_written:
            self.remark(reason)
            return
        if self._strict:
            raise UnsupportedRunError(
                f"This run could not be explained later: {reason}. TrajectoryRecorder(strict=False) records what can "
                "be recorded all the same."
            )
        if self._tell(f"The run is recorded, but cannot be replayed: {reason}."):
            self._reasons.append(reason)

    def nothing_recorded(self, reason: str) -> None:
        """Report something that makes recording impossible.

        Raises:
            UnsupportedRunError: If strict.
        """
        if self._strict:
            raise UnsupportedRunError(
                f"This run cannot be recorded: {reason}. TrajectoryRecorder(strict=False) trains without a record."
            )
        self._tell(f"Nothing is recorded: {reason}.")

    def remark(self, text: str) -> None:
        """Report something to know about the record."""
        if self._tell(f"About the record of this run: {text}."):
            (self._late if self._header_written else self._remarks).append(text)

    def take_for_header(self) -> tuple[str, list[str]]:
        """Return the reasons, joined, and the remarks so far; what comes later goes into the reason of the end."""
        self._header_written = True
        return ". ".join(self._reasons), list(self._remarks)

    def end_reason(self, reason: str) -> str:
        """Return the reason of the end, with the remarks since the header was written."""
        return "; ".join((reason, *self._late))

    def _tell(self, message: str) -> bool:
        """Warn, once; tell if it was news."""
        if message in self._told:
            return False
        self._told.add(message)
        rank_zero_warn(printable(message))
        return True
