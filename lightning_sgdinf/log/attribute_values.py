"""Values of a module's plain attributes as JSON: numbers, strings, small tensors and arrays, small containers of them.

A number or string is itself; everything else is an object with one member that names its kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.log.records import Json
from lightning_sgdinf.plain_text import encodable

LARGEST = 64
"""Elements of a tensor or container, and characters of a string over four, that are still small."""


def encode_attribute(value: Any) -> Json:
    """Return a value as JSON; ``None`` for ``None`` and for what is not small and plain, see `is_plain`."""
    kind = type(value)
    if kind in (bool, int, float) or (kind is str and _is_scalar(value)):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"numpy": [value.dtype.name, value.item()]}
    if isinstance(value, Tensor):
        if not _is_small(value):
            return None
        return {"tensor": [dtype_name(value.dtype), list(value.shape), value.detach().flatten().tolist()]}
    if isinstance(value, np.ndarray):
        if value.size > LARGEST or value.dtype.kind not in "biuf":
            return None
        return {"array": [value.dtype.name, list(value.shape), value.ravel().tolist()]}
    if isinstance(value, (list, tuple)) and len(value) <= LARGEST and all(map(_is_scalar, value)):
        return {"tuple" if isinstance(value, tuple) else "list": list(value)}
    if isinstance(value, dict) and len(value) <= LARGEST and all(map(_is_scalar, (*value, *value.values()))):
        return {"dict": dict(value)} if all(type(k) is str for k in value) else None
    return None


def decode_attribute(document: Json, *, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return the value of a document of `encode_attribute`.

    Args:
        document: The document.
        device: Where tensors with dimensions go.
        dtype: Of floating-point tensors; ``None`` leaves it as it was.
    """
    if not isinstance(document, dict):
        return document
    ((kind, content),) = document.items()
    parts: Any = content
    if kind == "numpy":
        return np.dtype(parts[0]).type(parts[1])
    if kind == "array":
        return np.array(parts[2], dtype=parts[0]).reshape(parts[1])
    if kind == "tensor":
        tensor = torch.tensor(parts[2], dtype=getattr(torch, parts[0])).reshape(parts[1])
        if tensor.ndim:
            tensor = tensor.to(device)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return tuple(parts) if kind == "tuple" else parts.copy()


def is_plain(value: Any) -> bool:
    """Return true for a value that can be recorded."""
    return value is None or encode_attribute(value) is not None


def _is_small(value: Tensor) -> bool:
    """Return true for a tensor whose values can be read without waiting for a device, and are no output of a graph."""
    plain = value.device.type == "cpu" and value.layout == torch.strided and not value.is_complex()
    return plain and value.numel() <= LARGEST and not value.requires_grad and not isinstance(value, nn.Parameter)


def _is_scalar(value: Any) -> bool:
    if type(value) is str:
        return len(value) <= 4 * LARGEST and encodable(value) == value
    return value is None or type(value) in (bool, int, float)
