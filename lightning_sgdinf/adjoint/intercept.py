"""Calls of torch functions, seen and handled while a user's step runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Is given the function and its arguments in place of the call, and returns the call's result."""


class Interceptor(TorchFunctionMode):
    """Sends calls of chosen torch functions to handlers while it is entered; all others pass."""

    def __init__(self, handlers: Mapping[Callable[..., Any], Handler]) -> None:
        super().__init__()
        self._handlers = handlers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        return func(*args, **(kwargs or {})) if handler is None else handler(func, args, kwargs or {})


def twice_differentiable_attention(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention by its formula: the fused CPU and CUDA kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return func(*args, **kwargs)


ATTENTION: Mapping[Callable[..., Any], Handler] = {
    F.scaled_dot_product_attention: twice_differentiable_attention,
    F.multi_head_attention_forward: twice_differentiable_attention,
}
"""Handlers that every differentiated step needs."""
