"""Labelled examples as vectors, each with what a person would look at instead: a text, or a row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.label_noise import LabelNoise, SymmetricNoise
from lightning_sgdinf.zoo.splits import split_ids

Original: TypeAlias = "str | Mapping[str, str | float]"
"""Origin of a vector: a text, or the columns of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledVectors:
    """Vectors and their classes.

    Attributes:
        inputs: Float32 ``[N, D]``.
        labels: Int64 ``[N]``, in ``[0, len(class_names))``.
        class_names: Name of each class.
        originals: What each was made from, ``N``.
    """

    inputs: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    originals: Sequence[Original]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, ids: Tensor) -> LabelledVectors:
        """Return the vectors with the given ids (int64 ``[M]``), in that order."""
        return LabelledVectors(
            inputs=self.inputs[ids],
            labels=self.labels[ids],
            class_names=self.class_names,
            originals=[self.originals[i] for i in ids.tolist()],
        )


class VectorSource(Protocol):
    """A source of vectors. A new data set is one class with this one method, and one file in ``conf/dataset``."""

    def read(self) -> tuple[LabelledVectors, LabelledVectors]:
        """Read everything one may train and validate on, and the data set's own test part."""
        ...


class VectorDataset(Dataset[tuple[Tensor, Tensor]]):
    """Vectors and labels as a map-style data set.

    Args:
        inputs: Float32 ``[N, D]``.
        labels: Int64 ``[N]``.
        originals: What each vector was made from, ``N``.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, originals: Sequence[Original]) -> None:
        self.inputs = inputs
        self.labels = labels
        self.originals = originals

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def shown(self, index: int) -> Original:
        """Return what a person would look at in place of vector ``index``."""
        return self.originals[index]

    def unaugmented(self) -> VectorDataset:
        """Return the same examples without random changes, of which there are none."""
        return self


class VectorData(LightningDataModule):
    """Train, validation and test loaders over a source of vectors, with label noise on the training part if asked for.

    In a configuration::

        _target_: lightning_sgdinf.zoo.VectorData
        source:
          _target_: lightning_sgdinf.zoo.Posts
          data_dir: ${data_dir}
        val_size: 300
        label_noise: 0.1

    Args:
        source: Where the vectors come from.
        train_size: Training examples; ``None`` for all that validation leaves.
        val_size: Validation examples, taken from the source's training part.
        test_size: Test examples, ``None`` for all of the source's test part.
        label_noise: What makes training labels wrong, or the part of them to change to any other class, in ``[0, 1]``.
        batch_size: Training examples per batch.
        eval_batch_size: Validation and test examples per batch.
        seed: Of the split, the noise and the order of training examples.

    Raises:
        ConfigurationError: The sizes do not fit the source.
    """

    train_set: VectorDataset
    val_set: VectorDataset
    test_set: VectorDataset
    flipped: Tensor | None
    true_labels: Tensor

    def __init__(
        self,
        source: VectorSource,
        *,
        train_size: int | None = None,
        val_size: int = 300,
        test_size: int | None = None,
        label_noise: float | LabelNoise = 0.0,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        pool, test = source.read()
        if val_size >= len(pool):
            raise ConfigurationError(
                f"val_size: expected fewer than the {len(pool)} examples there are, got {val_size}"
            )
        # Validation is drawn first, so that it stays the same whatever the other sizes are.
        rest = len(pool) - val_size if train_size is None else train_size
        val_ids, ids = split_ids(len(pool), [val_size, rest], seed=seed)
        train, val = pool.subset(ids), pool.subset(val_ids)
        if test_size is not None:
            test = test.subset(split_ids(len(test), [test_size], seed=seed)[0])
        noise = label_noise if isinstance(label_noise, LabelNoise) else SymmetricNoise(label_noise)
        noisy = noise.apply(train.labels, ids=ids, class_names=pool.class_names, seed=seed)
        self.class_names = pool.class_names
        self.true_labels = noisy.true_labels
        self.flipped = noisy.flipped if bool(noisy.flipped.any()) else None
        self.train_set = VectorDataset(train.inputs, noisy.labels, train.originals)
        self.val_set, self.test_set = (VectorDataset(part.inputs, part.labels, part.originals) for part in (val, test))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Length of a vector."""
        return (self.train_set.inputs.shape[1],)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a shuffled loader; every new one gives the same order."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader in order."""
        return DataLoader(self.val_set, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader in order."""
        return DataLoader(self.test_set, batch_size=self.eval_batch_size)
