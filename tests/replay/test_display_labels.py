from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset, random_split

from lightning_sgdinf.replay.display_labels import display_labels


class Named(Dataset):
    """A data set of others: it has labels under one name, and its items are never looked at."""

    def __init__(self, name: str, labels: Any) -> None:
        setattr(self, name, labels)
        self.length = len(labels)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("labels are shown without reading the data set")


def tensors(*labels: float) -> TensorDataset:
    return TensorDataset(torch.zeros(len(labels), 2), torch.tensor(labels))


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        (Named("targets", [3, 1]), ("3", "1")),
        (Named("labels", ("cat", "dog")), ("cat", "dog")),
        (Named("targets", torch.tensor([True, False])), ("True", "False")),
        (tensors(4, 2), ("4", "2")),
        (tensors(5.25, -1.0), ("5.25", "-1")),
        (TensorDataset(torch.zeros(2, 2), torch.tensor([[0.5], [2.0]])), ("0.5", "2")),
        (StackDataset(torch.zeros(2, 3), torch.tensor([7, 8])), ("7", "8")),
    ],
)
def test_labels_that_a_data_set_names(dataset: Any, labels: tuple[str, ...]) -> None:
    assert display_labels(dataset) == labels


@pytest.mark.parametrize(
    "dataset",
    [
        Named("examples", [1, 2]),
        Named("targets", [[1, 2], [3, 4]]),
        Named("targets", [None, 1]),
        TensorDataset(torch.zeros(2, 2)),
        TensorDataset(torch.zeros(2, 2), torch.zeros(2, 3)),
        ConcatDataset([tensors(1, 2), TensorDataset(torch.zeros(3, 2))]),
        StackDataset(x=torch.zeros(2, 3), y=torch.zeros(2)),
    ],
)
def test_where_there_are_none_or_several_none_are_shown(dataset: Any) -> None:
    assert display_labels(dataset) is None


def test_they_survive_whatever_torch_wraps_data_sets_in() -> None:
    whole = ConcatDataset([tensors(*range(6)), Named("targets", list("abcd")), Subset(tensors(20, 21, 22), [2, 0])])
    assert display_labels(whole) == (*"012345", *"abcd", "22", "20")
    for part in random_split(whole, [0.5, 0.5], generator=torch.Generator().manual_seed(0)):
        assert display_labels(part) == tuple((*"012345", *"abcd", "22", "20")[i] for i in part.indices)
    twice = Subset(Subset(whole, [11, 3, 7]), [2, 0])
    assert display_labels(twice) == ("b", "20")
    assert display_labels(ConcatDataset([twice, twice])) == ("b", "20", "b", "20")


def test_a_wrapper_that_makes_other_items_is_not_seen_through() -> None:
    class Shuffled(Subset):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(random.randrange(len(self)))

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[i] for i in indices]

    assert display_labels(Shuffled(tensors(1, 2, 3), [0, 1])) is None
