"""Hand steps over to the writer.

A step waits for the next one, since only then is known what the averaging callbacks made of it, and goes to the writer
as the next backward pass begins: in it the training thread leaves the interpreter to the writer for longest.

An exception may come between any two instructions, and a signal's handler may call in here. So a step is added by one
assignment, which has happened or has not; and to hand over, to flush and to close can be begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from lightning_sgdinf.errors import SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.log import Json, Step, state_checksum
from lightning_sgdinf.record.keep import Keep
from lightning_sgdinf.record.resume import footprint
from lightning_sgdinf.record.state_tracker import PackedState
from lightning_sgdinf.record.writer import Writer, take_buffers_of
from lightning_sgdinf.state import Layout


class StepDelivery:
    """The step that waits, and the writer, once there is one.

    Args:
        keep: Policy by which states are stored; can be set anew until the first step is handed over.
        max_epochs: Of the Trainer; -1 if it has none.
        steps: Number of steps that the log has already.
        takes_states: Otherwise no state is stored: another process records them.
        remark: Called with a sentence about something to know.

    Attributes:
        written: Number of steps that the writer has; it may have one more after an interrupt.
        average_before: ``(a, b)`` of the average before the first step, if a callback did one.
        average_is_known: No update of the average was missed.
    """

    def __init__(
        self, *, keep: Keep, max_epochs: int, steps: int, takes_states: bool, remark: Callable[[str], None]
    ) -> None:
        self.keep = keep
        self._max_epochs = max_epochs
        self._takes_states = takes_states
        self._remark = remark
        self.written = steps
        self.average_before: tuple[float, float] | None = None
        self.average_is_known = True
        self._writer: Writer | None = None
        self._take_buffers: Callable[[Layout], dict[str, Tensor]] = Layout.empty
        self._waiting: tuple[Step, PackedState] | None = None
        self._given: tuple[Step, bool] | None = None  # that may be with the writer already, and whether its state is
        self._last: tuple[int, tuple[int, int]] | None = None  # number of steps and footprints at a flush
        self._kept: int | None = None  # a step whose state is stored, whatever the policy says

    @property
    def is_open(self) -> bool:
        """True while there is a writer."""
        return self._writer is not None

    @property
    def stopped(self) -> str:
        """Why the writer writes no more, if it has stopped and lets training go on."""
        return getattr(self._writer, "stopped", "")

    @property
    def steps(self) -> int:
        """Number of steps that were taken, the one that waits included."""
        waiting = self._waiting
        return self.written if waiting is None else waiting[0].index + 1

    def open(self, writer: Writer) -> None:
        """Hand steps over to this writer from now on."""
        self._take_buffers = take_buffers_of(writer)
        self._writer = writer

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return flat buffers to pack a state into."""
        return self._take_buffers(layout)

    def add(self, step: Step, before: PackedState) -> None:
        """Let a step wait for what is to come of it; none waits."""
        self._waiting = step, before

    def keep_state(self, index: int) -> None:
        """Store state ``index``, whatever the policy says; its step has not been handed over yet."""
        self._kept = index

    def add_average(self, a: float, b: float) -> None:
        """Add to the last step that a callback did ``average <- a * average + b * params``."""
        if self._waiting is not None and self._given is not None and self._given[0] is self._waiting[0]:
            self.hand_over()  # which was interrupted
        if self._waiting is None and self.steps:
            self.average_is_known = False
            self._remark(
                f"the average was updated after step {self.steps - 1} had been recorded, between a checkpoint and the "
                "next step, so the average is not recorded"
            )
            return
        if self._waiting is None:
            self.average_before = _combined(self.average_before, a, b)
            return
        step, packed = self._waiting
        self._waiting = replace(step, average=_combined(step.average, a, b)), packed

    def add_validation(self, facts: Mapping[str, Json]) -> None:
        """Add to the last step what was logged in a validation after it, while the step waits."""
        if self._waiting is not None:
            step, packed = self._waiting
            self._waiting = replace(step, validation=facts), packed

    def hand_over(self) -> None:
        """Give the step that waits to the writer.

        Raises:
            LogWriteError: From the writer.
        """
        writer, waiting = self._writer, self._waiting
        if writer is None or waiting is None:
            return
        step, packed = waiting
        if self._given is None or self._given[0] is not step:
            wanted = self.keep.stores(step.index, step.epoch, self._max_epochs)
            self._given = step, self._takes_states and (wanted or step.index == self._kept)
        writer.put(step, packed.layout, packed.flat, store=self._given[1])
        self.written = step.index + 1
        self._waiting = None

    def flush(self, *, complete: bool) -> tuple[int, int] | None:
        """Make all steps survive the death of the process.

        Args:
            complete: Nothing more can happen to the average of the weights before the next step. Otherwise the last
                step waits, and is flushed with the next.

        Returns:
            Checksums of the last step and of the state before it; ``None`` if they are not known.

        Raises:
            LogWriteError: From the writer.
        """
        if (waiting := self._waiting) is not None:  # once: a signal's handler that saves a checkpoint hands it over
            step, packed = waiting
            self._last = step.index + 1, (footprint(step), state_checksum(packed.layout.unpack(packed.flat)))
            if complete:
                self.hand_over()
        if self._writer is not None:
            self._writer.flush()
        return self._last[1] if self._last is not None and self._last[0] == self.steps else None

    def close(
        self, reason: str, final_state: Callable[[int], PackedState | None], average: Mapping[str, Tensor] | None
    ) -> None:
        """Write what waits, the final state, and the end; nothing if no step was taken.

        Args:
            reason: Of the end.
            final_state: Gives the state of that number, if it is known. An interrupt may have come between the
                optimizer's update and the end of its recording.
            average: Averaged parameters, if there are any.

        Raises:
            LogWriteError: From the writer.
        """
        writer = self._writer
        if writer is None:
            return
        try:
            try:
                self.hand_over()
            except UnsupportedRunError:  # another process has not told its part
                self._waiting = None
            final = final_state(self.written)
            if final is None:
                writer.abandon(reason)
            else:
                writer.finish(final.layout, final.flat, average=average, reason=reason)
        except SgdInfluenceError as error:
            with suppress(SgdInfluenceError):
                writer.abandon(f"{reason}; {error}")
            self._writer = None
            raise
        self._writer = None


def _combined(earlier: tuple[float, float] | None, a: float, b: float) -> tuple[float, float]:
    """Return the coefficients of two updates, one after the other."""
    return (a, b) if earlier is None else (a * earlier[0], a * earlier[1] + b)
