"""Convolutions of a few examples at a time, where torch would unfold a whole batch.

In float64 the CPU has no kernel that convolves images as they are: torch writes out every patch, kernel size times the
image for each example of the batch, before it multiplies. Parts of the batch need that room one after another. Every
example is multiplied by itself in any case, so values keep their bits; of weights, the parts' gradients are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor as _is_batched

from lightning_sgdinf.kernels.intercept import Handler

ROOM_BYTES = 4 << 20
"""Memory for the patches of the examples that are convolved at once; one is, whatever it needs."""


def _by_parts(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
    x, w = given.get("input"), given.get("weight")
    if not isinstance(x, Tensor) or not isinstance(w, Tensor):
        return func(*args, **kwargs)
    unfolded = x.is_cpu and x.dtype == torch.float64 and x.ndim == w.ndim and not _is_batched(x)
    if not unfolded:
        return func(*args, **kwargs)
    patches = prod(w.shape[1:]) * prod(x.shape[2:]) * x.element_size()
    several = max(1, ROOM_BYTES // max(1, patches))
    if len(x) <= several:
        return func(*args, **kwargs)
    rest, more = args[1:], {name: value for name, value in kwargs.items() if name != "input"}
    return torch.cat([func(part, *rest, **more) for part in x.split(several)])


CONVOLUTION_PARTS: dict[Callable[..., Any], Handler] = dict.fromkeys(
    (torch.conv1d, torch.conv2d, torch.conv3d), _by_parts
)
"""Handlers for an `Interceptor`."""
