"""Calls of torch functions, seen and handled while a user's step runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Is given the function and its arguments in place of the call, and returns the call's result."""


class Ungraded(Protocol):
    """Makes the calls that a step makes while gradients are switched off."""

    def call(self, handler: Handler | None, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Make one call; ``handler`` is the one that would have made it."""
        ...


class Interceptor(TorchFunctionMode):
    """Sends calls of chosen torch functions to handlers while it is entered; all others pass.

    Args:
        handlers: By function.
        ungraded: Makes every call while gradients are switched off; ``None`` for no difference.

    Attributes:
        called: The functions that were called.
    """

    def __init__(self, handlers: Mapping[Callable[..., Any], Handler], ungraded: Ungraded | None = None) -> None:
        super().__init__()
        self._handlers = handlers
        self._ungraded = ungraded
        self.called: set[Callable[..., Any]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        if func in _IN_PARTS:
            with self:  # its parts are handled as if they were called one by one
                return _IN_PARTS[func](*args, **(kwargs or {}))
        self.called.add(func)
        if self._ungraded is not None and not torch.is_grad_enabled():
            return self._ungraded.call(handler, func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if handler is None else handler(func, args, kwargs or {})


def _linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int | None = None,
    options: Any = None,
    **more: Any,
) -> Tensor:
    """Compute a fused layer and loss in two, without what only saves memory."""
    classes = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias)
    logits = logits.unflatten(-1, classes) if len(classes) > 1 else logits
    return F.cross_entropy(logits, target, ignore_index=-100 if ignore_index is None else ignore_index, **more)


_FUSED = getattr(F, "linear_cross_entropy", None)  # from torch 2.13 on
_IN_PARTS: Mapping[Callable[..., Any], Callable[..., Tensor]] = (
    {} if _FUSED is None else {_FUSED: _linear_cross_entropy}
)
