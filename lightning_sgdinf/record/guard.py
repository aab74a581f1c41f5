"""The one seam between the recorder and the training: whatever the recorder meets, the training goes on.

Everything that Lightning, torch or a data loader calls of the recorder's passes through a `Guard`. Errors that were
asked for pass it: those of a strict recorder before anything is recorded, and those of the disk. Any other ends the
recording, with a warning that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from lightning_sgdinf.errors import LogWriteError, SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.plain_text import printable

Result = TypeVar("Result")
Hook = TypeVar("Hook", bound=Callable[..., Any])


class Guard:
    """Runs the recorder's own work, as long as it works.

    Args:
        strict: Raise, as `UnsupportedRunError`, what ends the recording before anything is in the log.

    Attributes:
        stop: Ends the recording, if there is one; is given the reason, as a sentence without full stop.
        begun: There is something in the log.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._broken = False
        self.stop: Callable[[str], None] | None = None
        self.begun = False

    def renew(self) -> None:
        """Begin anew, with another fit."""
        self._broken = self.begun = False

    def run(self, work: Callable[..., Result], *args: Any, named: bool = False, **kwargs: Any) -> Result | None:
        """Return what ``work`` returns; ``None`` if it fails, and from then on.

        Args:
            work: Some work of the recorder's.
            args: Its arguments.
            named: Errors of this package always pass: the training has not begun.
            kwargs: Its keyword arguments.

        Raises:
            UnsupportedRunError: The work failed before anything was recorded, and the recorder is strict.
            LogWriteError: From the writer.
            SgdInfluenceError: The work raised it before anything was recorded, and the recorder is strict.
        """
        if self._broken:
            return None
        try:
            return work(*args, **kwargs)
        except LogWriteError:
            raise
        except SgdInfluenceError as error:
            if named or (self._strict and not self.begun):
                raise
            self._end(str(error).rstrip("."), told=True)
        except Exception as error:  # of whatever kind: the training is not to end by it
            reason = f"{type(error).__qualname__}: {str(error).strip() or 'without a message'}"
            reason = f"the recorder met something that it cannot record ({reason:.300})"
            refused = self._strict and not self.begun
            self._end(reason, told=not refused)
            if refused:
                raise UnsupportedRunError(
                    f"This run cannot be recorded: {reason}. TrajectoryRecorder(strict=False) trains on and records "
                    "what comes before; please report the traceback."
                ) from error
        return None

    def last(self, work: Callable[..., Any], *args: Any) -> None:
        """Run what ends a recording, after which nothing can be raised any more: warn of whatever goes wrong."""
        try:
            work(*args)
        except Exception as error:
            rank_zero_warn(printable(f"The record of this run could not be finished: {error}"))

    def _end(self, reason: str, *, told: bool) -> None:
        self._broken = True
        if told:
            what = "Recording stops" if self.begun else "Nothing is recorded"
            rank_zero_warn(printable(f"{what}: {reason}. Training goes on."))
        if self.stop is not None:
            self.last(self.stop, reason)


def guarded(hook: Hook) -> Hook:
    """Return a callback's hook that runs under the callback's ``_guard``."""

    @wraps(hook)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._guard.run(hook, self, *args, **kwargs)

    return outer  # type: ignore[return-value]


def guarded_anew(hook: Hook) -> Hook:
    """Return a callback's hook with which a fit begins: its ``_guard`` is renewed, and lets named errors pass."""

    @wraps(hook)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._guard.renew()
        return self._guard.run(hook, self, *args, named=True, **kwargs)

    return outer  # type: ignore[return-value]
