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
    attributes = {} if isinstance(batch, type) or callable(batch) else attributes_of(batch)
    if not attributes:
        return batch
    changed = copy.copy(batch)
    for name, value in attributes.items():
        object.__setattr__(changed, name, map_tensors(value, function))
    return changed


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes that an object has itself, those in slots included."""
    slots = (slot for kind in type(value).__mro__ for slot in _slots_of(kind))
    in_slots = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    return {**in_slots, **getattr(value, "__dict__", {})}


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in the order in which `map_tensors` meets them."""
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, keep)
    yield from tensors
