"""Differences of successive bit patterns, undone exactly in both directions.

With ``b[j]`` the pattern of one word of stored state ``j`` and ``w`` its bits, a row is the first or second difference,

    row[j] = zigzag(b[j] - b[j+1])               mod 2**w
    row[j] = zigzag(b[j] - 2 b[j+1] + b[j+2])    mod 2**w

with ``zigzag(d) = (d << 1) xor (d >> (w-1))`` of ``d`` as a signed integer: 0, -1, 1, -2, 2 ... become 0, 1, 2, 3, 4
..., so that small differences of either sign have zeros in their high bytes, which compress well. Neighbouring floats
have neighbouring patterns, so small updates give small integers; where updates follow one another smoothly, as with
momentum, second differences are smaller still.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLOCK_BYTES = 128 << 10  # two or three blocks fit into a core's second-level cache


def encode_difference(states: Sequence[np.ndarray], out: np.ndarray) -> None:
    """Compute ``out = zigzag(difference)`` of two successive states, or of three for the second difference.

    Args:
        states: Patterns in the order of the states, unsigned words ``[n]`` of one width.
        out: The row, overwritten.
    """
    signed, sign_bit, block = _signed(out.dtype)
    current, following, *third = [s.view(signed) for s in states]
    result = out.view(signed)
    scratch = np.empty(min(block, len(out)), signed)
    for start in range(0, len(out), block):
        stop = start + block
        d = result[start:stop]
        s = scratch[: len(d)]
        np.subtract(current[start:stop], following[start:stop], out=d)
        for after in third:  # (b[j] - b[j+1]) - (b[j+1] - b[j+2])
            np.subtract(following[start:stop], after[start:stop], out=s)
            np.subtract(d, s, out=d)
        np.right_shift(d, sign_bit, out=s)  # arithmetic: all ones below zero, else all zeros
        np.left_shift(d, 1, out=d)
        np.bitwise_xor(d, s, out=d)


class DeltaCursor:
    """A place among the stored states of a flat buffer, from which one can step both ways.

    For second differences the cursor also holds ``slope[j] = b[j] - b[j+1]``, because then ``slope[j] = d[j] +
    slope[j+1]`` with ``d[j]`` the decoded row, and ``b[j] = slope[j] + b[j+1]``.

    Args:
        states: Copies of the patterns of the state at the place, and for second differences of the one that follows it.

    Attributes:
        value: Patterns of the state at the place.
    """

    def __init__(self, states: Sequence[np.ndarray]) -> None:
        self.value = states[0]
        self._slope = states[0] - states[1] if len(states) > 1 else None

    def step_back(self, row: np.ndarray) -> None:
        """Go one state back by the row between: for second differences the row that begins with the state to reach."""
        if self._slope is None:
            _undo(row, self.value, np.add)
        else:
            _undo(row, self._slope, np.add)
            np.add(self.value, self._slope, out=self.value)

    def step_forward(self, row: np.ndarray) -> None:
        """Go one state on by the row that begins with the present state."""
        if self._slope is None:
            _undo(row, self.value, np.subtract)
        else:
            np.subtract(self.value, self._slope, out=self.value)
            _undo(row, self._slope, np.subtract)

    def next_patterns(self, out: np.ndarray | None = None) -> np.ndarray:
        """Return the patterns of the next state; of second differences only."""
        assert self._slope is not None
        return np.subtract(self.value, self._slope, out=out)


def _undo(row: np.ndarray, value: np.ndarray, combine: np.ufunc) -> None:
    """Compute ``value = combine(value, unzigzag(row))`` in place, with ``unzigzag(q) = (q >> 1) xor -(q & 1)``."""
    signed, _, block = _signed(row.dtype)
    scratch = np.empty((2, min(block, len(row))), row.dtype)
    for start in range(0, len(row), block):
        q = row[start : start + block]
        v = value[start : start + block].view(signed)
        sign, d = scratch[0, : len(q)], scratch[1, : len(q)]
        np.bitwise_and(q, 1, out=sign)
        np.negative(sign.view(signed), out=sign.view(signed))  # all ones below zero, else all zeros
        np.right_shift(q, 1, out=d)
        np.bitwise_xor(d, sign, out=d)
        combine(v, d.view(signed), out=v)


def _signed(dtype: np.dtype) -> tuple[np.dtype, int, int]:
    """Return the signed type of that width, the number of its sign bit, and the words of a block."""
    width = dtype.itemsize
    return np.dtype(f"<i{width}"), 8 * width - 1, _BLOCK_BYTES // width
