"""The interface of what a recording is written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from lightning_sgdinf.log import LogSizes, Step
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.state import Layout


class Writer(Protocol):
    """Writes what is recorded; `lightning_sgdinf.log.LogWriter` is one."""

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


def take_buffers_of(writer: Any) -> Callable[[Layout], dict[str, Tensor]]:
    """Return a writer's `Writer.take_buffers`; its name was ``lanes`` once."""
    if not hasattr(writer, "take_buffers"):
        warn_renamed("Writer.lanes", "Writer.take_buffers")
        return writer.lanes
    return writer.take_buffers
