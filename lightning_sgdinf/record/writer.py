"""The interface of what a recording is written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from lightning_sgdinf.log import LogSizes, Step
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.state import Layout


class Writer(Protocol):
    """Writes what is recorded; `lightning_sgdinf.log.LogWriter` is one.

    After an interrupt, a call is made again if nobody knows how far it came: with the same step or state, which must
    not be written twice then.
    """

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return a free set of flat buffers to pack a state into."""
        ...

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None:
        """Write a step and the state before it; the flat buffers are given away."""
        ...

    def flush(self) -> None:
        """Make all that was put survive the death of the process."""
        ...

    def finish(
        self,
        layout: Layout,
        flat: dict[str, Tensor],
        *,
        average: Mapping[str, Tensor] | None = None,
        reason: str = "completed",
    ) -> None:
        """Write the state after the last step, and end."""
        ...

    def abandon(self, reason: str) -> None:
        """End without a final state."""
        ...

    def sizes(self) -> LogSizes:
        """Return the sizes of the log with all that was put."""
        ...


class SilentWriter:
    """A writer that writes nothing: what others build on who need only a part of one."""

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return fresh flat buffers."""
        return layout.empty()

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def finish(
        self,
        layout: Layout,
        flat: dict[str, Tensor],
        *,
        average: Mapping[str, Tensor] | None = None,
        reason: str = "completed",
    ) -> None:
        """Do nothing."""

    def abandon(self, reason: str) -> None:
        """Do nothing."""

    def sizes(self) -> LogSizes:
        """Return nothing."""
        return LogSizes(total=0, states=0)


class NoWriter(SilentWriter):
    """The writer of a log that could not be made, where training goes on without.

    Args:
        stopped: Why.
    """

    def __init__(self, stopped: str) -> None:
        self.stopped = stopped


def take_buffers_of(writer: Any) -> Callable[[Layout], dict[str, Tensor]]:
    """Return a writer's `Writer.take_buffers`; its name was ``lanes`` once."""
    if not hasattr(writer, "take_buffers"):
        warn_renamed("Writer.lanes", "Writer.take_buffers")
        return writer.lanes
    return writer.take_buffers
