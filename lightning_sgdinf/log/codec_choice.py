"""Choose the codec of a segment: one for all, or the one that a trial on its predecessor's last states prefers.

How well differences compress depends on the optimizer, its state and how far training has come, so ``"auto"`` tries
every codec at the beginning of each segment. A slower codec must save some bytes to be taken. The first segment is
short and has the default codec: its states are what the first trial is made on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from lightning_sgdinf.log.buffer_rows import BufferRows
from lightning_sgdinf.log.codecs import AUTO, CODECS, Codec, codec_named
from lightning_sgdinf.log.hdf5 import LIBVER

Patterns = Mapping[str, np.ndarray]
"""Bit patterns of a state by dtype."""

_FIRST = "delta"
_TRIAL_STATES = 3  # give second differences
_TRIAL_WORDS, _TRIAL_BLOCK = 1 << 20, 1 << 16
_SAVES_AT_LEAST = 0.05


class CodecChoice:
    """Chooses the codec of each segment.

    Args:
        name: Of a codec, or ``"auto"``.
    """

    def __init__(self, name: str) -> None:
        self._fixed = None if name == AUTO else codec_named(name)

    @property
    def held(self) -> int:
        """Number of last stored states that must be kept in memory."""
        return _TRIAL_STATES if self._fixed is None else self._fixed.order

    def for_segment(self, recent: Sequence[Patterns]) -> Codec:
        """Return the codec of the next segment.

        Args:
            recent: The last stored states, of the segment's layout.
        """
        if self._fixed is not None:
            return self._fixed
        return best_codec(recent) if self.knows(recent) else codec_named(_FIRST)

    def knows(self, recent: Sequence[Patterns]) -> bool:
        """Tell if there is all that a choice needs; otherwise the segment had better be short."""
        return self._fixed is not None or len(recent) >= _TRIAL_STATES


def best_codec(states: Sequence[Patterns]) -> Codec:
    """Return the fastest codec that no slower one undercuts by 5 % of the bytes.

    Args:
        states: Three or more successive states.
    """
    best, smallest = None, 0.0
    for codec in CODECS.values():
        size = stored_bytes(codec, states)
        if best is None or size < (1 - _SAVES_AT_LEAST) * smallest:
            best, smallest = codec, size
    assert best is not None
    return best


def stored_bytes(codec: Codec, states: Sequence[Patterns]) -> float:
    """Return the bytes per state that a codec makes of states, anchors aside.

    Of large ones only a part is tried, in blocks spread over all of it: layers compress differently, and an embedding
    of which most rows are not drawn does so best.
    """
    total = 0.0
    for dtype, first in states[0].items():
        if not len(first):
            continue
        tried = min(len(first), _TRIAL_WORDS)
        with h5py.File(f"trial-{id(states)}", "x", driver="core", backing_store=False, libver=LIBVER) as file:
            BufferRows.create(file, dtype, tried, codec)
            rows = BufferRows(file, dtype, codec.order, 1)
            for patterns in states:
                rows.add(_spread(patterns[dtype], tried))
            rows.flush()
            file.flush()
            size = file[f"state/{dtype}"].id.get_storage_size()  # pyright: ignore[reportAttributeAccessIssue]
            total += size / rows.written * len(first) / tried  # from the part that was tried to all
    return total


def _spread(patterns: np.ndarray, count: int) -> np.ndarray:
    """Return so many words in blocks that lie evenly spread."""
    if len(patterns) <= count:
        return patterns
    starts = np.linspace(0, len(patterns) - _TRIAL_BLOCK, count // _TRIAL_BLOCK).astype(int)
    return np.concatenate([patterns[start : start + _TRIAL_BLOCK] for start in starts])
