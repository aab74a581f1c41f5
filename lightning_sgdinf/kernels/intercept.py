"""Calls of torch functions, seen and handled while a user's step runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
