"""Floating-point types: their names, what is made in them, and casts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_sgdinf.batch_structure import map_tensors


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype: ``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def tensors_made_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Let a step that makes tensors of its own make them in a given precision, as Lightning does in float64.

    In float64, what asks for float32 (``logits.float()``, ``softmax(..., dtype=torch.float32)``) gets float64: in the
    float32 that it was written for it changes nothing, and in float64 it would round.
    """
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with _Widened() if dtype == torch.float64 else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


class _Widened(TorchFunctionMode):
    """Gives float64 to what asks for float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        elif any(a is torch.float32 for a in args) or any(v is torch.float32 for v in (kwargs or {}).values()):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def cast_floats(batch: Any, dtype: torch.dtype) -> Any:
    """Return the batch with its floating-point tensors in another precision."""
    return map_tensors(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)
