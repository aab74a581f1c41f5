"""Tensors in a batch, whatever its form: containers, mappings, dataclasses, objects of a library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the batch with a function applied to every tensor; the batch itself stays as it is.

    Lists, tuples and named tuples, mappings of any class, and objects with attributes (dataclasses, batches of graphs)
    are gone into; anything else is kept.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, _PLAIN):
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if type(batch) in (list, tuple):
        return type(batch)(map_tensors(value, function) for value in batch)
    if isinstance(batch, Mapping):
        changed = copy.copy(batch)
        for key, value in batch.items():
            changed[key] = map_tensors(value, function)  # type: ignore[index]
        return changed
    if callable(getattr(batch, "apply", None)) and callable(getattr(batch, "to", None)):
        graphs: Any = copy.copy(batch)
        return graphs.apply(function)
    attributes = getattr(batch, "__dict__", None)
    if not attributes or isinstance(batch, type) or callable(batch):
        return batch
    changed = copy.copy(batch)
    for name, value in attributes.items():
        object.__setattr__(changed, name, map_tensors(value, function))
    return changed


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in the order in which `map_tensors` meets them."""
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, keep)
    yield from tensors
