"""How rows of states are made small, without loss.

A codec says whether absolute values or differences are stored, and which HDF5 filter the chunks go through. Differences
are those of successive *bit patterns* as integers, so that they can be undone exactly in both directions: with ``b[j]``
the pattern of one word of stored state ``j`` and ``w`` its bits,

    row[j] = zigzag(b[j] - b[j+1] mod 2**w),    zigzag(d) = (d << 1) xor (d >> (w-1)), d as a signed integer.

Neighbouring floats have neighbouring patterns, so small updates give small integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import hdf5plugin
import numpy as np

from lightning_sgdinf.errors import ConfigurationError

_BLOCK_BYTES = 128 << 10  # two or three blocks fit into a core's second-level cache


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store the rows of a lane.

    Attributes:
        name: What users write and segments say.
        differences: Store zigzag differences of successive states, between two absolute anchors.
        filter: Arguments of ``create_dataset`` that select the HDF5 filter.
    """

    name: str
    differences: bool
    filter: Mapping[str, Any] = field(default_factory=dict)


CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("none", differences=False),
        Codec("delta", differences=True, filter=dict(hdf5plugin.Bitshuffle(cname="lz4"))),
    )
}


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in CODECS:
        raise ConfigurationError(f"codec {name!r} is unknown, expected one of {', '.join(map(repr, CODECS))}")
    return CODECS[name]


def encode_difference(current: np.ndarray, following: np.ndarray, out: np.ndarray) -> None:
    """``out = zigzag(current - following)``, all unsigned words ``[n]`` of one width.

    Args:
        current: Patterns of the earlier state.
        following: Patterns of the later state.
        out: Where the row goes.
    """
    signed, sign_bit, block = _signed(out.dtype)
    c, f, o = current.view(signed), following.view(signed), out.view(signed)
    scratch = np.empty(min(block, len(o)), signed)
    for start in range(0, len(o), block):
        d = o[start : start + block]
        s = scratch[: len(d)]
        np.subtract(c[start : start + block], f[start : start + block], out=d)
        np.right_shift(d, sign_bit, out=s)
        np.left_shift(d, 1, out=d)
        np.bitwise_xor(d, s, out=d)


def step_back(row: np.ndarray, value: np.ndarray) -> None:
    """Turn the later state's patterns in ``value`` into the earlier one's, in place: ``value += unzigzag(row)``."""
    _undo(row, value, np.add)


def step_forth(row: np.ndarray, value: np.ndarray) -> None:
    """Turn the earlier state's patterns in ``value`` into the later one's, in place: ``value -= unzigzag(row)``."""
    _undo(row, value, np.subtract)


def _undo(row: np.ndarray, value: np.ndarray, combine: np.ufunc) -> None:
    signed, _, block = _signed(row.dtype)
    scratch = np.empty((2, min(block, len(row))), row.dtype)
    for start in range(0, len(row), block):
        q = row[start : start + block]
        v = value[start : start + block].view(signed)
        sign, d = scratch[0, : len(q)], scratch[1, : len(q)]
        np.bitwise_and(q, 1, out=sign)
        np.negative(sign.view(signed), out=sign.view(signed))
        np.right_shift(q, 1, out=d)
        np.bitwise_xor(d, sign, out=d)
        combine(v, d.view(signed), out=v)


def _signed(dtype: np.dtype) -> tuple[np.dtype, int, int]:
    width = dtype.itemsize
    return np.dtype(f"<i{width}"), 8 * width - 1, _BLOCK_BYTES // width
