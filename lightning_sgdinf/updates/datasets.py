"""A training set as a selection leaves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.selection import Selection


class SizedDataset(Protocol):
    """A map-style dataset that knows its length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ReducedDataset(Dataset):
    """A dataset without some of its examples; the others keep their order.

    Args:
        dataset: Map-style, ``N`` examples.
        drop: Ids to leave out.

    Attributes:
        ids: Id in ``dataset`` of each example that is left, increasing.

    Raises:
        ConfigurationError: The dataset is not map-style, an id is not in it, or nothing would be left.
    """

    def __init__(self, dataset: SizedDataset, drop: Iterable[int]) -> None:
        selection = Selection(drop=tuple(drop))
        count = _size(dataset)
        selection.check(count)
        dropped = frozenset(selection.drop)
        if len(dropped) == count:
            raise ConfigurationError(f"all {count} training examples are dropped; leave at least one.")
        self.dataset = dataset
        self.ids = tuple(j for j in range(count) if j not in dropped)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.ids[index]]


def replace_label(item: Any, label: int) -> Any:
    """Return an ``(x, y)`` item with another class; ``y`` keeps its type.

    Args:
        item: A tuple or list of two: the input, and the class as a number or a tensor or array of one element.
        label: The new class.

    Raises:
        ConfigurationError: The item is of another form.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ConfigurationError(
            f"expected (x, y) items to relabel, got {type(item).__name__}; give `replace=`, a function from an item "
            "and a class to the item with that class."
        )
    x, y = item
    if isinstance(y, Tensor) and y.numel() == 1:
        new: Any = torch.full_like(y, label)
    elif isinstance(y, np.ndarray) and y.size == 1:
        new = np.full_like(y, label)
    elif isinstance(y, (int, float, np.generic)):
        new = type(y)(label)
    else:
        raise ConfigurationError(
            f"expected y to be one class, got {type(y).__name__}; give `replace=`, a function from an item and a class "
            "to the item with that class."
        )
    return [x, new] if isinstance(item, list) else (x, new)


class RelabelledDataset(Dataset):
    """A dataset in which some examples have another class.

    Args:
        dataset: Map-style, ``N`` examples.
        relabel: Id to its new class.
        replace: Gives an item another class; see `replace_label`.

    Raises:
        ConfigurationError: The dataset is not map-style, or an id is not in it.
    """

    def __init__(
        self, dataset: SizedDataset, relabel: Mapping[int, int], *, replace: Callable[[Any, int], Any] = replace_label
    ) -> None:
        selection = Selection(relabel=relabel)
        selection.check(_size(dataset))
        self.dataset = dataset
        self.relabel = selection.relabel
        self.replace = replace

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        # A negative index counts from the end, as it does in a list.
        label = self.relabel.get(index % len(self.dataset))
        return item if label is None else self.replace(item, label)


def cleansed_dataset(
    dataset: SizedDataset, selection: Selection, *, replace: Callable[[Any, int], Any] = replace_label
) -> SizedDataset:
    """Return the dataset with a selection carried out; the dataset itself if the selection is empty.

    Args:
        dataset: Map-style, ``N`` examples.
        selection: What to drop and relabel, in ids of ``dataset``.
        replace: Gives an item another class; see `replace_label`.
    """
    if selection.relabel:
        dataset = RelabelledDataset(dataset, selection.relabel, replace=replace)
    if selection.drop:
        dataset = ReducedDataset(dataset, selection.drop)
    return dataset


def _size(dataset: Any) -> int:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"expected a map-style dataset, with __len__ and __getitem__, got {type(dataset).__name__}; an iterable "
            "one has no ids by which examples could be left out."
        )
    return len(dataset)
