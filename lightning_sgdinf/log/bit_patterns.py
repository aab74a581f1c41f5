"""Bit patterns of a flat buffer, as little-endian words of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.state import Layout


@dataclass(frozen=True, slots=True)
class WordType:
    """The words a torch dtype is stored as.

    Attributes:
        plain: numpy dtype of stored values; unsigned integers where numpy has no such type.
        per_element: Words per element, 2 for complex numbers.
    """

    plain: str
    per_element: int = 1

    @property
    def pattern(self) -> np.dtype:
        """Unsigned integer of the same width."""
        return np.dtype(f"<u{np.dtype(self.plain).itemsize}")


_WORDS = {
    "float64": WordType("<f8"),
    "float32": WordType("<f4"),
    "float16": WordType("<f2"),
    "bfloat16": WordType("<u2"),
    "int64": WordType("<i8"),
    "int32": WordType("<i4"),
    "int16": WordType("<i2"),
    "int8": WordType("|i1"),
    "uint8": WordType("|u1"),
    "uint64": WordType("<u8"),
    "uint32": WordType("<u4"),
    "uint16": WordType("<u2"),
    "bool": WordType("|u1"),
    "float8_e4m3fn": WordType("|u1"),
    "float8_e5m2": WordType("|u1"),
    "complex64": WordType("<f4", 2),
    "complex128": WordType("<f8", 2),
}


def word_type(dtype: str) -> WordType:
    """Return the words of a torch dtype given by name.

    Raises:
        ConfigurationError: A dtype that a log cannot hold.
    """
    try:
        return _WORDS[dtype]
    except KeyError:
        raise ConfigurationError(
            f"the state has a tensor of dtype {dtype}, expected one of {', '.join(_WORDS)}; convert it, or keep it out "
            "of the module's parameters, buffers and optimizer state"
        ) from None


def is_recordable(tensor: Tensor) -> bool:
    """Tell if a log can hold a tensor: a dense one, of a dtype that has words. Sparse and quantized ones it cannot."""
    name = dtype_name(tensor.dtype)
    return name in _WORDS and tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def to_patterns(buffer: Tensor, dtype: str) -> np.ndarray:
    """Return the bit patterns of a contiguous one-dimensional CPU tensor; shares its memory."""
    pattern = word_type(dtype).pattern
    if not buffer.numel():
        return np.empty(0, pattern)
    return buffer.detach().view(torch.uint8).numpy().view(pattern)


def state_patterns(flat: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the bit patterns of each flat buffer of a state; shares their memory."""
    return {dtype: to_patterns(buffer, dtype) for dtype, buffer in flat.items()}


def word_counts(layout: Layout) -> dict[str, int]:
    """Return the number of words of each flat buffer of a layout, complex elements having two."""
    return {dtype: n * word_type(dtype).per_element for dtype, n in layout.buffer_sizes.items()}


def row_bytes(layout: Layout) -> int:
    """Return the bytes of one uncompressed state."""
    return sum(words * word_type(dtype).pattern.itemsize for dtype, words in word_counts(layout).items())
