"""Binary classification of vectors: what a source reads, and a data module with parts of a fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.zoo.span import span_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryExamples:
    """Vectors of two classes.

    Attributes:
        inputs: Float64 ``[M, D]``.
        labels: Int64 ``[M]``, 0 or 1.
        class_names: Of 0 and of 1.
    """

    inputs: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, str]


class BinarySource(Protocol):
    """A source of vectors."""

    def read(self) -> BinaryExamples:
        """Read all there are."""
        ...


class BinaryDataset(Dataset[tuple[Tensor, Tensor]]):
    """Vectors and labels as a map-style data set.

    Args:
        inputs: Float32 ``[N, D]``.
        labels: Int64 ``[N]``, 0 or 1.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch, which is one look-up where single examples would be hundreds."""
        return self.inputs[indices], self.labels[indices]


class EpochOrder(Sampler[int]):
    """A permutation of the examples that depends on the epoch alone, as the SGD-influence paper's experiments have it.

    Args:
        count: Number of examples.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer does before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.RandomState(self.epoch).permutation(self.count).tolist())


class BinaryData(LightningDataModule):
    """Random parts of some examples, standardised by the mean and the deviation of the training part.

    Vectors longer than there are examples are given in coordinates of their span, see `lightning_sgdinf.zoo.span`.

    Attributes:
        dimensions: Length ``D`` of a vector.
        basis: Orthonormal, float64 ``[D, R]``: what the inputs are coordinates in; ``None`` if they are as they were.

    Args:
        examples: To draw from.
        size: Examples of each of the training, validation and test parts.
        batch_size: Training examples per batch.
        seed: Of the parts.

    Raises:
        ConfigurationError: There are too few examples.
    """

    train_set: BinaryDataset
    val_set: BinaryDataset
    test_set: BinaryDataset

    def __init__(self, examples: BinaryExamples, *, size: int = 200, batch_size: int = 5, seed: int = 0) -> None:
        super().__init__()
        if not 0 < 3 * size <= len(examples.labels):
            raise ConfigurationError(
                f"size: expected 1 to {len(examples.labels) // 3}, a third of {len(examples.labels)} examples, "
                f"got {size}"
            )
        self.class_names = examples.class_names
        self.batch_size = batch_size
        split = require("sklearn.model_selection", extra="cli").train_test_split
        scaler = require("sklearn.preprocessing", extra="cli").StandardScaler()
        x, rest, y, rest_y = split(
            examples.inputs, examples.labels, train_size=size, test_size=2 * size, random_state=seed
        )
        val, test, val_y, test_y = split(rest, rest_y, train_size=size, test_size=size, random_state=seed + 1)
        scaler.fit(x)
        inputs = np.concatenate([scaler.transform(part) for part in (x, val, test)])
        self.dimensions = inputs.shape[1]
        self.basis: Tensor | None = None
        if self.dimensions > len(inputs):
            basis = span_of(inputs)
            inputs, self.basis = inputs @ basis, torch.from_numpy(basis)
        self.train_set, self.val_set, self.test_set = (
            BinaryDataset(torch.from_numpy(a).float(), torch.from_numpy(b))
            for a, b in zip(np.split(inputs, 3), (y, val_y, test_y), strict=True)
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader in the order of `EpochOrder`."""
        order = EpochOrder(len(self.train_set))
        return DataLoader(self.train_set, batch_size=self.batch_size, sampler=order, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader of one batch."""
        return DataLoader(self.val_set, batch_size=len(self.val_set), collate_fn=_as_it_is)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader of one batch."""
        return DataLoader(self.test_set, batch_size=len(self.test_set), collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    """Return a batch as the data set made it."""
    return batch
