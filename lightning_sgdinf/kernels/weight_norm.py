r"""Weight normalisation by its formula: the second derivative of torch's fused operation is wrong.

.. math:: w = g\,\frac{v}{\lVert v\rVert},

with the norm over all dimensions but one. Off by as much as the derivative itself where ``g`` and ``v`` move together;
values and first derivatives of the formula are those of the fused operation to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.kernels.intercept import Handler


def normalise_weight(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return ``g v / ||v||``.

    Args:
        v: Directions, of any shape.
        g: Lengths, of the shape that ``torch.norm_except_dim`` gives.
        dim: The dimension that each length is of; -1 for one length of all.
    """
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _handle(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return normalise_weight(*args, **kwargs)


WEIGHT_NORM: Mapping[Callable[..., Any], Handler] = {torch._weight_norm: _handle}  # type: ignore[attr-defined]
"""Handlers for an `Interceptor` in every differentiated step."""
