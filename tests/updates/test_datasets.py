from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sgdinf.cleansing import Selection
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.updates import ReducedDataset, RelabelledDataset, cleansed_dataset, replace_label


@pytest.fixture
def dataset() -> TensorDataset:
    return TensorDataset(torch.arange(6.0), torch.tensor([0, 1, 0, 1, 0, 1]))


def test_reduced_keeps_the_others_in_order(dataset: TensorDataset) -> None:
    reduced = ReducedDataset(dataset, (4, 0))
    assert reduced.ids == (1, 2, 3, 5)
    assert len(reduced) == 4
    assert [float(reduced[i][0]) for i in range(4)] == [1.0, 2.0, 3.0, 5.0]
    (x, y) = next(iter(DataLoader(reduced, batch_size=4)))
    assert (x.tolist(), y.tolist()) == ([1.0, 2.0, 3.0, 5.0], [1, 0, 1, 1])


def test_reduced_refuses_to_be_empty_or_to_drop_strangers(dataset: TensorDataset) -> None:
    with pytest.raises(ConfigurationError, match="all 6 training examples"):
        ReducedDataset(dataset, range(6))
    with pytest.raises(ConfigurationError, match=r"got \[6\]"):
        ReducedDataset(dataset, (6,))


def test_relabelled_changes_only_the_labels_named(dataset: TensorDataset) -> None:
    relabelled = RelabelledDataset(dataset, {2: 7, 5: 8})
    x, y = next(iter(DataLoader(relabelled, batch_size=6)))
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert y.tolist() == [0, 1, 7, 1, 0, 8]
    assert dataset.tensors[1].tolist() == [0, 1, 0, 1, 0, 1]
    assert int(relabelled[-1][1]) == 8
    with pytest.raises(ConfigurationError, match=r"got \[6\]"):
        RelabelledDataset(dataset, {6: 0})


@pytest.mark.parametrize(
    "label", [3, 3.0, np.int32(3), np.float32(3), torch.tensor(3), torch.tensor([3.0]), np.array([3])], ids=repr
)
def test_a_label_keeps_its_type(label: object) -> None:
    x, y = replace_label(("x", label), 1)
    assert x == "x"
    assert type(y) is type(label)
    assert getattr(y, "dtype", None) == getattr(label, "dtype", None)
    assert getattr(y, "shape", None) == getattr(label, "shape", None)
    assert float(y) == 1.0 if not isinstance(y, np.ndarray) else y.tolist() == [1]
    assert type(replace_label(["x", label], 1)) is list


@pytest.mark.parametrize("item", [{"x": 1, "y": 2}, (1, 2, 3), ("x", torch.zeros(3)), ("x", "cat")])
def test_an_item_of_another_form_needs_a_function(item: object) -> None:
    with pytest.raises(ConfigurationError, match="give `replace=`"):
        replace_label(item, 1)


def test_items_of_any_form_can_be_relabelled_with_a_function() -> None:
    items = [{"x": 0, "y": 0}, {"x": 1, "y": 0}]
    relabelled = RelabelledDataset(items, {1: 5}, replace=lambda item, label: {**item, "y": label})
    assert [relabelled[0], relabelled[1]] == [{"x": 0, "y": 0}, {"x": 1, "y": 5}]


def test_cleansed_relabels_by_the_original_ids_before_it_drops(dataset: TensorDataset) -> None:
    cleansed = cleansed_dataset(dataset, Selection(drop=(0, 3), relabel={4: 9}))
    assert [(float(x), int(y)) for x, y in (cleansed[i] for i in range(len(cleansed)))] == [
        (1, 1),
        (2, 0),
        (4, 9),
        (5, 1),
    ]
    assert cleansed_dataset(dataset, Selection()) is dataset


def test_refuses_a_dataset_without_ids() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(ConfigurationError, match="map-style dataset"):
        ReducedDataset(Stream(), (0,))
