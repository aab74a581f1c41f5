"""A validation set in two halves: one to compute scores from, one to choose with.

The examples whose loss the scores explain are used up by the scores: how many harmful examples to remove must be
judged on others, or the choice is optimistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_sgdinf.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Halves:
    """Two disjoint halves of a validation set.

    Attributes:
        scoring: Ids, int64, increasing, of the half whose loss is the query.
        choosing: Ids of the other half, for `CleansingContext.evaluate`; as many, or one less.
    """

    scoring: Tensor
    choosing: Tensor

    def subsets(self, dataset: Dataset) -> tuple[Subset, Subset]:
        """Return the two halves of a dataset, scoring first."""
        return Subset(dataset, self.scoring.tolist()), Subset(dataset, self.choosing.tolist())


def halve(count: int, *, seed: int, labels: Tensor | None = None) -> Halves:
    """Split ``0 .. count - 1`` at random into two halves, class by class where classes are known.

    Args:
        count: Number of validation examples, 2 or more.
        seed: Of the split; no global generator is read or moved.
        labels: Class of each example, whole numbers ``[count]``; the halves then differ by at most one example per
            class.

    Returns:
        The two halves; together they are all ids.

    Raises:
        ConfigurationError: There are fewer than two examples, or not one label each.
    """
    if count < 2:
        raise ConfigurationError(f"expected 2 or more validation examples to split in halves, got {count}.")
    if labels is not None and labels.shape != (count,):
        raise ConfigurationError(f"labels: expected one for each of {count} examples, got shape {tuple(labels.shape)}.")
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        # Dealing out in turns, class after class, keeps both the classes and the whole balanced.
        shuffled = shuffled[torch.argsort(labels.cpu()[shuffled], stable=True)]
    return Halves(scoring=shuffled[0::2].sort().values, choosing=shuffled[1::2].sort().values)
