"""Examples of one's own choice in batches, brought to the model as a Trainer brings them.

A data set that changes its examples at random may say what they are without that, by a method ``unaugmented()`` that
returns such a data set, and what those of another one are with it, by ``augmenting(other)``. Where it has neither, its
examples are taken as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay.batches import fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """A map-style data set, and the way from its items to the model.

    Attributes:
        dataset: Map-style.
        collate: Makes a batch of items.
        bring: Makes of a collated batch what ``training_step`` gets.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    bring: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield all examples in order: their ids, int64 ``[B]``, and the batch.

        Args:
            size: Examples per batch, at least 1; the last batch may be smaller.

        Raises:
            ConfigurationError: ``size`` is below 1, or there are no examples.
        """
        if size < 1:
            raise ConfigurationError(f"batch_size: expected at least 1 example per batch, got {size}")
        if not len(self):
            raise ConfigurationError("expected a data set with one example or more, got an empty one")
        for ids in torch.arange(len(self)).split(size):
            yield ids, self.batch(ids)

    def batch(self, ids: Tensor) -> Any:
        """Return the batch of examples with the given ids."""
        return self.bring(self.collate(fetch(self.dataset, ids.tolist())))

    def subset(self, ids: Tensor) -> Examples:
        """Return those with the given ids, in that order."""
        return replace(self, dataset=Subset(self.dataset, ids.tolist()))

    def plain(self) -> Examples:
        """Return the same examples without random augmentation, where the data set knows how."""
        return replace(self, dataset=_plain(self.dataset))

    def augmented_as(self, other: Examples) -> Examples:
        """Return the same examples, augmented as another data set augments its own, where that one knows how."""
        augmenting = getattr(_innermost(other.dataset), "augmenting", None)
        return self if augmenting is None else replace(self, dataset=_within_subsets(self.dataset, augmenting))


def _plain(dataset: Any) -> Any:
    return _within_subsets(dataset, lambda inner: inner.unaugmented() if hasattr(inner, "unaugmented") else inner)


def _within_subsets(dataset: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(dataset, Subset):
        return Subset(_within_subsets(dataset.dataset, change), dataset.indices)
    return change(dataset)


def _innermost(dataset: Any) -> Any:
    return _innermost(dataset.dataset) if isinstance(dataset, Subset) else dataset
