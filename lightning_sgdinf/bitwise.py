"""Compare states bit by bit, so that NaN equals itself and 0.0 is not -0.0."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

from lightning_sgdinf.state import Layout, TensorSpec


def changed_tensors(
    layout: Layout, flat: dict[str, Tensor], expected_layout: Layout, expected: dict[str, Tensor]
) -> tuple[str, ...]:
    """Return the labels of the tensors in which a packed state differs from the packed state it should be."""
    if (layout is expected_layout or layout == expected_layout) and all(
        torch.equal(bits(flat[d]), bits(expected[d])) for d in flat
    ):
        return ()
    present, wanted = _by_label(layout, flat), _by_label(expected_layout, expected)
    return tuple(
        label
        for label in dict.fromkeys((*wanted, *present))
        if label not in present
        or label not in wanted
        or present[label][0] != wanted[label][0]
        or not torch.equal(bits(present[label][1]), bits(wanted[label][1]))
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell if two tensors on the CPU of one shape and dtype hold the same bits."""
    if one.is_contiguous() and other.is_contiguous():
        return not _compare(one.data_ptr(), other.data_ptr(), one.nbytes)  # several times as fast as torch.equal
    return torch.equal(bits(one), bits(other))


_compare = ctypes.PyDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_compare.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t


def bits(values: Tensor) -> Tensor:
    """Return the tensor's words as integers, flat."""
    return values.contiguous().view(-1).view(_WORDS.get(values.dtype.itemsize, torch.uint8))


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def _by_label(layout: Layout, flat: dict[str, Tensor]) -> dict[str, tuple[TensorSpec, Tensor]]:
    values = [value for *_, value in layout.unpack(flat).items()]
    return {spec.label: (spec, value) for spec, value in zip(layout.specs, values, strict=True)}
