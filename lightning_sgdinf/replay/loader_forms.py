"""Loaders of other forms, as loaders of one form: a map-style data set whose items a ``collate_fn`` joins."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from lightning_sgdinf import random_state
from lightning_sgdinf.validation_data import KeptBatches


class ListedItems(Dataset[int]):
    """Items of a data set that gives a whole batch for a list of indices: an item is its index, until it is collated.

    Args:
        dataset: Indexed by lists.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset_of_lists = dataset

    def __len__(self) -> int:
        return len(self.dataset_of_lists)

    def __getitem__(self, index: int) -> int:
        return int(index)


class JoinListed:
    """Makes a batch of `ListedItems`.

    Args:
        loader: Asks its data set for lists.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __call__(self, items: list[int]) -> Any:
        """Return the batch of the examples with these indices."""
        return self._loader.collate_fn(self._loader.dataset[list(items)])


def takes_lists(loader: Any) -> bool:
    """Return true if a loader asks its data set for lists of indices: ``batch_size=None`` and such a sampler."""
    if getattr(loader, "batch_sampler", True) is not None or not hasattr(loader.dataset, "__getitem__"):
        return False
    return isinstance(getattr(loader, "sampler", None), BatchSampler)


def by_item(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same batches as one that asks its data set for lists of indices."""
    sampler: Any = loader.sampler
    if not isinstance(sampler, BatchSampler):
        return DataLoader(ListedItems(loader.dataset), collate_fn=JoinListed(loader))
    return DataLoader(ListedItems(loader.dataset), batch_sampler=sampler, collate_fn=JoinListed(loader))


def is_stream(loader: Any) -> bool:
    """Return true if a loader can only be read from its beginning to its end."""
    dataset = getattr(loader, "dataset", None)
    return hasattr(loader, "__iter__") and (isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"))


def read_stream(loader: Any, limit: float) -> DataLoader[Any]:
    """Return a loader of the batches of a stream, which is read once, now.

    Args:
        loader: Any iterable of batches.
        limit: How many batches to read at most; ``inf`` for all.
    """
    with random_state.seeded(0):
        batches = itertools.islice(loader, None if limit == float("inf") else int(limit))
        return DataLoader(KeptBatches(list(batches)), batch_size=None, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
