"""Training sets with something wrong in them on purpose, so that finding and repairing it can be measured."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.unlearning.requests import ids_where, random_ids, trained_on
from lightning_sgdinf.zoo import ImageData


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted:
    """A data set with something wrong in its training part.

    Attributes:
        data: What to train on; validation and test part are clean.
        wrong: Whose label or input is wrong, bool ``[N]``; nothing where what is wrong is not in the training set.
        about: What is wrong, in words.
    """

    data: ImageData
    wrong: Tensor
    about: str


class Corruption(Protocol):
    """Something wrong. A new kind is one class with this method, and one file in ``conf/corruption``."""

    def prepare(self, data: ImageData, seed: int) -> Corrupted:
        """Return what to train on.

        Args:
            data: A data set; it is left as it is.
            seed: Of what is drawn.
        """
        ...


@dataclass(frozen=True)
class CorruptedLabels:
    """The labels that the data set's own noise made wrong: ``noise=symmetric``, ``asymmetric``, ``cifar10n``."""

    def prepare(self, data: ImageData, seed: int) -> Corrupted:
        """Return the data set as it is; see `Corruption.prepare`.

        Raises:
            ConfigurationError: No label is wrong.
        """
        del seed
        if data.flipped is None:
            raise ConfigurationError(
                "corruption=labels: expected a data set with wrong training labels, got none; give noise=symmetric, "
                "noise=asymmetric or noise=cifar10n"
            )
        wrong = data.flipped
        return Corrupted(data=data, wrong=wrong, about=f"{int(wrong.sum())} of {len(wrong)} training labels are wrong")


@dataclass(frozen=True)
class CorruptedInputs:
    """A random part of the training images has pixels of noise in place of its own.

    Attributes:
        part: Of the images, in ``(0, 1)``.
        strength: Part of an image's pixels that are drawn uniformly from ``[0, 1]``, in ``(0, 1]``.
    """

    part: float = 0.1
    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.part < 1 or not 0 < self.strength <= 1:
            raise ConfigurationError(
                f"corruption: expected a part in (0, 1) and a strength in (0, 1], got {self.part} and {self.strength}"
            )

    def prepare(self, data: ImageData, seed: int) -> Corrupted:
        """Return the data set with noise in it; see `Corruption.prepare`."""
        own = torch.tensor(random_ids(range(len(data.train_set)), self.part, seed))
        images = data.train_set.images.clone()
        generator = torch.Generator().manual_seed(seed)
        chosen = images[own]
        noise = torch.rand(chosen.shape, generator=generator)
        if not images.is_floating_point():
            noise = noise * 255
        hit = torch.rand(chosen.shape[0], 1, *chosen.shape[2:], generator=generator) < self.strength
        images[own] = torch.where(hit, noise.to(images.dtype), chosen)
        wrong = torch.zeros(len(images), dtype=torch.bool)
        wrong[own] = True
        return Corrupted(
            data=trained_on(data, images, data.train_set.labels),
            wrong=wrong,
            about=f"{100 * self.strength:.0f} % of the pixels of {len(own)} of {len(wrong)} training images are noise",
        )


@dataclass(frozen=True)
class MissingGroup:
    """Most images of one class were never collected: the failures' cause is not among the training examples.

    Whatever is blamed is innocent, and leaving it out should not help: a control, and selection bias as it is.

    Attributes:
        label: The class.
        part: Of its images that are missing, in ``(0, 1)``.
    """

    label: int = 8
    part: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.part < 1:
            raise ConfigurationError(f"corruption.part: expected a part in (0, 1), got {self.part}")

    def prepare(self, data: ImageData, seed: int) -> Corrupted:
        """Return the data set without them; see `Corruption.prepare`.

        Raises:
            ConfigurationError: There are fewer than two training images of the class.
        """
        members = ids_where(data.true_labels == self.label)
        gone = random_ids(members, self.part, seed) if len(members) > 1 else []
        if not gone or len(gone) == len(members):
            raise ConfigurationError(
                f"corruption.label: expected a class with images to leave out and to keep, got {len(members)} of class "
                f"{self.label}"
            )
        keep = torch.ones(len(data.train_set), dtype=torch.bool)
        keep[gone] = False
        kept = ids_where(keep)
        other = copy(data)
        other.train_set = trained_on(data, data.train_set.images[kept], data.train_set.labels[kept]).train_set
        other.true_labels = data.true_labels[kept]
        other.flipped = None if data.flipped is None else data.flipped[kept]
        wrong = torch.zeros(len(kept), dtype=torch.bool) if other.flipped is None else other.flipped
        name = data.class_names[self.label]
        return Corrupted(data=other, wrong=wrong, about=f"{len(gone)} of {len(members)} images of {name} are missing")
