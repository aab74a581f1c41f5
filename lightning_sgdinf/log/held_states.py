"""The last stored states, which a writer needs a while longer."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from lightning_sgdinf.log.bit_patterns import state_patterns
from lightning_sgdinf.log.codec_choice import CodecChoice
from lightning_sgdinf.log.codecs import Codec
from lightning_sgdinf.state import Layout

FlatState = tuple[Layout, dict[str, Tensor]]
"""A layout, and a state in flat buffers."""


class HeldStates:
    """States whose memory is needed until the next differences are taken, or the next codec is tried.

    Args:
        choice: Of codecs; says how many states it needs.
    """

    def __init__(self, choice: CodecChoice) -> None:
        self._choice = choice
        self._held: deque[FlatState] = deque()

    def add(self, layout: Layout, flat: dict[str, Tensor]) -> list[FlatState]:
        """Hold a state, and return those that are free now."""
        self._held.append((layout, flat))
        return [self._held.popleft() for _ in range(len(self._held) - self._choice.held)]

    def choose_codec(self, layout: Layout) -> tuple[Codec, bool]:
        """Return the codec of a segment of that layout; true, if it had better be short: the next choice knows more."""
        recent = [state_patterns(flat) for held, flat in self._held if held is layout or held == layout]
        return self._choice.for_segment(recent), not self._choice.knows(recent)
