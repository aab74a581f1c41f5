"""A module that holds other tensors for a while.

``torch.func.functional_call`` does not give back what it took where a module is a part of another in two places: the
second place is found to hold the new tensor already, which is then put back last (a forecaster whose layers share an
embedding keeps the vectorised tensors of a pass that is over). Here every place is written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def holding(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module hold other parameters and buffers inside, and have its own afterwards.

    Args:
        module: A tensor that it has under several names, or in a part that is in several places, is replaced in all.
        tensors: By the names of ``named_parameters`` and ``named_buffers``; what is not named stays.

    Raises:
        KeyError: The module has no tensor of a name.
    """
    own: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    new = {id(own[name]): tensor for name, tensor in tensors.items()}
    stores: list[dict[str, Any]] = [store for part in module.modules() for store in (part._parameters, part._buffers)]
    places = [(store, key, value) for store in stores for key, value in store.items() if id(value) in new]
    flat = [(part, list(part._flat_weights)) for part in module.modules() if isinstance(part, nn.RNNBase)]
    try:
        for store, key, value in places:
            store[key] = new[id(value)]  # type: ignore[assignment]
        yield
    finally:
        for store, key, value in places:
            store[key] = value
        for part, weights in flat:  # which its forward pass reads from the places above
            part._flat_weights = weights


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """Return what a module returns for some arguments, with other parameters and buffers; see `holding`."""
    with holding(module, tensors):
        return module(*arguments)
