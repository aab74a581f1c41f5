"""Follow the state of a run from step to step.

A state is taken right after the optimizer's update, which is what the step leads to. The next step starts from it,
unless something else has changed tensors in between: before its first micro-batch the live tensors are compared with
what was taken, and if they differ they are taken again and the step names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_sgdinf.bitwise import changed_tensors
from lightning_sgdinf.log.bit_patterns import row_bytes
from lightning_sgdinf.record.resume import Bookmark, differing, tensor_checksums
from lightning_sgdinf.record.state_reader import StateReader
from lightning_sgdinf.state import Layout


@dataclass(slots=True)
class PackedState:
    """A state copied into flat buffers.

    Attributes:
        layout: Of the state.
        flat: The buffers.
        index: Number of the state in the run; -1 while it is being copied.
    """

    layout: Layout
    flat: dict[str, Tensor]
    index: int = -1


class StateTracker:
    """The states before and after the step under way.

    Args:
        reader: Of the module and its optimizer.
        take_buffers: Gives flat buffers of a layout.
        resumed_after: Bookmark of the checkpoint that the run is resumed from, where its states are known.
        remark: Called with a sentence about something to know.

    Attributes:
        before: The state that the step under way starts from; ``None`` between two steps.
        after: The state that the last step led to; may be the same.
    """

    def __init__(
        self,
        reader: StateReader,
        *,
        take_buffers: Callable[[Layout], dict[str, Tensor]],
        resumed_after: Bookmark | None,
        remark: Callable[[str], None],
    ) -> None:
        self._reader = reader
        self._take_buffers = take_buffers
        self._resumed_after = resumed_after
        self._remark = remark
        self._stale = False
        self._changed: tuple[str, ...] = ()
        self.before: PackedState | None = None
        self.after: PackedState | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes of the state after the last step."""
        return 0 if self.after is None else row_bytes(self.after.layout)

    def refresh_later(self) -> None:
        """Look again at the module's structure when the next step begins."""
        self._stale = True

    def begin_step(self, index: int) -> tuple[str, ...]:
        """Take state ``index``, from which a step starts, unless the last one led to it.

        Returns:
            Labels of the tensors that something else than the optimizer has changed since the last step.
        """
        if self._stale:
            self._reader.refresh()
            self._stale = False
        layout, tensors = self._reader.read()
        after = self.after
        if (
            after is not None
            and after.layout is layout
            and (self.before is None or self.before is after)
            and self._reader.matches(layout, tensors, after.flat)
        ):
            self.before, self._changed = after, ()
            return ()
        if self.before is None or self.before is after or self.before.layout is not layout:
            self.before = PackedState(layout, self._take_buffers(layout))
        self._pack(self.before, tensors, index)
        if after is not None:
            self._changed = changed_tensors(layout, self.before.flat, after.layout, after.flat)
        elif self._resumed_after is not None:
            self._changed = self._changed_in_resuming(self.before, self._resumed_after)
        return self._changed

    def take_after(self, index: int) -> None:
        """Take state ``index``, which the optimizer has just led to."""
        layout, tensors = self._reader.read()
        if self.after is None or self.after is self.before or self.after.layout is not layout:
            self.after = PackedState(layout, self._take_buffers(layout))
        self._pack(self.after, tensors, index)

    def edited(self) -> tuple[str, ...]:
        """Return the labels of the tensors that are not what the last step led to."""
        layout, tensors = self._reader.read()
        after = self.after
        if after is None or (after.layout is layout and self._reader.matches(layout, tensors, after.flat)):
            return ()
        present = layout.empty()
        self._reader.pack(layout, tensors, present)
        return changed_tensors(layout, present, after.layout, after.flat)

    def state(self, index: int) -> PackedState | None:
        """Return state ``index`` if it is one of the two."""
        return next((p for p in (self.after, self.before) if p is not None and p.index == index), None)

    def _pack(self, packed: PackedState, tensors: list[Tensor], index: int) -> None:
        packed.index = -1
        self._reader.pack(packed.layout, tensors, packed.flat)
        packed.index = index

    def _changed_in_resuming(self, packed: PackedState, bookmark: Bookmark) -> tuple[str, ...]:
        """Return the labels of the tensors that are not what they were when the checkpoint was saved."""
        if not packed.layout.specs:  # another process takes the states
            return ()
        changed = differing(tensor_checksums(packed.layout, packed.flat), bookmark.tensors)
        if changed:
            self._remark(
                f"{', '.join(changed[:5])} {'are' if len(changed) > 1 else 'is'} not what the log has at step "
                f"{packed.index}: the checkpoint does not restore it, or something changed it since"
            )
        return changed
