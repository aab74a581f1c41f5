"""The examples that a query is computed from; a validation set in two halves, one to score with, one to choose.

The examples whose loss the scores explain are used up by the scores: how many harmful examples to remove must be
judged on others, or the choice is optimistic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset

from lightning_sgdinf import random_state
from lightning_sgdinf.batch_structure import tensors_in
from lightning_sgdinf.dtypes import tensors_made_in
from lightning_sgdinf.errors import ConfigurationError


class KeptBatches(Dataset[Any]):
    """Batches of a stream of validation data, which cannot be asked for single examples.

    Args:
        batches: As the loader gave them.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationData:
    """The examples a query is computed from.

    Attributes:
        loader: The validation loader; its order does not matter.
        transfer: Brings a batch to the model's device.
        made_in: The floating-point type that data sets make tensors in if they do not say.
        seed: Where random numbers begin in every pass over the examples; ``None`` leaves them to the caller.
        dataloader_idx: Number of the loader among several, for ``validation_step``; ``None`` if it is the only one.
    """

    loader: DataLoader[Any]
    transfer: Callable[[Any], Any]
    made_in: torch.dtype = field(default_factory=torch.get_default_dtype)
    seed: int | None = 0
    dataloader_idx: int | None = None

    @property
    def size(self) -> int:
        """Return the number of validation examples."""
        return len(self.loader.dataset)  # type: ignore[arg-type]

    def batches(self, ids: Sequence[int] | None = None) -> Iterator[tuple[Any, int, int]]:
        """Yield ``(batch, batch index, number of examples)`` of all examples, or of chosen ones.

        Random masks or crops come out the same each time, from one seed: a query is a function of the model.
        """
        loader = self.loader
        if ids is not None:
            if isinstance(loader.dataset, KeptBatches):
                raise ConfigurationError(
                    "the query asks about single validation examples, but the validation data are a stream, whose "
                    "examples have no ids. Ask about all of them (MeanLoss), or pass a loader of a map-style data set"
                )
            size = loader.batch_size or 1
            loader = DataLoader(Subset(loader.dataset, list(ids)), batch_size=size, collate_fn=loader.collate_fn)
        with nullcontext() if self.seed is None else random_state.seeded(self.seed):
            batches, sizes, end = iter(loader), batch_sizes(loader), object()
            for index in itertools.count():
                with tensors_made_in(self.made_in):  # whatever the model computes in
                    batch: Any = next(batches, end)
                if batch is end:
                    return
                size = next(sizes, None)
                yield self.transfer(batch), index, batch_size(batch) if size is None else size

    def labels(self) -> list[int]:
        """Return the second item of every example, as integers.

        Raises:
            ConfigurationError: If examples are not ``(x, y)`` with an integer ``y``.
        """
        dataset = self.loader.dataset
        try:
            return [int(dataset[i][1]) for i in range(self.size)]
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise not_labelled(dataset[0]) from error


def batch_size(batch: Any) -> int:
    """Return the number of examples in a batch that somebody made: graphs, or rows of the first tensor.

    Raises:
        ConfigurationError: There is no such thing in the batch.
    """
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    for tensor in tensors_in(batch):
        if tensor.ndim:
            return len(tensor)
    raise ConfigurationError(
        f"cannot tell how many examples a validation batch of type {type(batch).__name__} has: expected a tensor with "
        "one row per example in it, got none. Give a DataLoader with a batch_size, or a FunctionQuery that computes "
        "its own mean."
    )


def batch_sizes(loader: DataLoader[Any]) -> Iterator[int | None]:
    """Yield the number of examples in each batch that a loader will give; ``None`` where only the batch can tell."""
    sampler = getattr(loader, "batch_sampler", None)
    if type(sampler) is not BatchSampler or not hasattr(sampler.sampler, "__len__"):
        yield from itertools.repeat(None)
        return
    whole, rest = divmod(len(sampler.sampler), sampler.batch_size)  # type: ignore[arg-type]
    yield from itertools.repeat(sampler.batch_size, whole)
    if rest and not sampler.drop_last:
        yield rest


def not_labelled(examples: Any) -> ConfigurationError:
    """Return the error of validation examples that are not ``(x, y)`` with an integer ``y``."""
    parts = f" of {', '.join(type(v).__name__ for v in examples)}" if isinstance(examples, (tuple, list)) else ""
    return ConfigurationError(
        "this query needs examples (x, y) with an integer label y; the validation set gives "
        f"{type(examples).__name__}{parts}. Use MeanLoss, ExampleLoss, or FunctionQuery with a function of your own."
    )


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
