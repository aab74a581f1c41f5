"""Held-out data of a data module: validation data in two halves, and test data if there are any.

Scores explain one half, what to leave out is chosen on the other, and the effect is measured on data that neither has
seen: the test data. Without test data there is nothing left to measure on but the half that the choice was made on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.cleansing import halve
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Loaders of held-out data, in order, without shuffling.

    Attributes:
        scoring: Of the half of the validation data that scores are about.
        choosing: Of the other half.
        test: Of the test data; ``None`` if there are none.
    """

    scoring: DataLoader[Any]
    choosing: DataLoader[Any]
    test: DataLoader[Any] | None

    @classmethod
    def of(cls, data: LightningDataModule, validation: DataLoader[Any], seed: int) -> HeldOut:
        """Return the halves of a validation loader, and the test loader of its data module.

        Args:
            data: Set up for its fit.
            validation: The loader that the fit validated with.
            seed: Of the halves.

        Raises:
            ConfigurationError: There are several test loaders, or the validation data are too few to halve.
        """
        dataset: Any = validation.dataset
        scoring, choosing = halve(len(dataset), seed=seed, labels=classes_of(dataset)).subsets(dataset)
        return cls(scoring=_like(validation, scoring), choosing=_like(validation, choosing), test=_test_loader(data))


@dataclass(frozen=True)
class Measure:
    """The first scalar of a query, on some held-out data, as a value that is better when lower.

    Attributes:
        bound: The query, bound to the run and to these data.
    """

    bound: BoundQuery

    def on(self, loader: DataLoader[Any]) -> Measure:
        """Return the same on other data."""
        return Measure(replace(self.bound, data=replace(self.bound.data, loader=loader, dataloader_idx=None)))

    @property
    def name(self) -> str:
        """Return what it is, without a word of which data."""
        return self.bound.names[0].replace("validation ", "")

    @property
    def sign(self) -> int:
        """Return -1 if the query itself is better when higher, 1 otherwise."""
        return 1 if self.bound.query.better == "lower" else -1

    def __call__(self, state: ModelState) -> float:
        """Return it for a state."""
        return self.sign * float(self.bound.value(state)[0])


def classes_of(dataset: Any) -> Tensor | None:
    """Return the class of each example, int64 ``[N]``, where items are pairs with a whole number; else ``None``."""
    try:
        second = [dataset[i][1] for i in range(len(dataset))]
    except (TypeError, KeyError, IndexError):
        return None
    labels = [torch.as_tensor(value) for value in second if isinstance(value, (int, Tensor)) or hasattr(value, "dtype")]
    if len(labels) < len(second) or any(label.numel() != 1 or label.is_floating_point() for label in labels):
        return None
    return torch.tensor([int(label) for label in labels])


def _like(loader: DataLoader[Any], dataset: Dataset[Any]) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn)


def _test_loader(data: LightningDataModule) -> DataLoader[Any] | None:
    if type(data).test_dataloader is LightningDataModule.test_dataloader:
        return None
    data.setup("test")
    loaders: Any = data.test_dataloader()
    loader: Any = loaders[0] if isinstance(loaders, (list, tuple)) and len(loaders) == 1 else loaders
    if not hasattr(loader, "dataset"):
        raise ConfigurationError(
            f"dataset: {type(data).__name__}.test_dataloader gives {type(loaders).__name__}, expected one DataLoader"
        )
    return _like(loader, loader.dataset)
