"""Floating-point types: their names, what is made in them, and casts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_sgdinf.batch_structure import map_tensors


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype: ``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def tensors_made_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Let a step that makes tensors of its own make them in a given precision, as Lightning does in float64."""
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


def cast_floats(batch: Any, dtype: torch.dtype) -> Any:
    """Return the batch with its floating-point tensors in another precision."""
    return map_tensors(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)
