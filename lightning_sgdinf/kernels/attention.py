"""Attention by its formula, which has the second derivative that the fused kernels lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_sgdinf.kernels.intercept import Handler


def twice_differentiable_attention(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an attention function by its formula: the fused CPU and CUDA kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return func(*args, **kwargs)


ATTENTION: Mapping[Callable[..., Any], Handler] = {
    F.scaled_dot_product_attention: twice_differentiable_attention,
    F.multi_head_attention_forward: twice_differentiable_attention,
}
"""Handlers that every differentiated step needs."""
