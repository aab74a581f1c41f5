"""Requests to forget: what is trained on, the set, and the test data that a result is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.evaluation import BackdoorJudge, BackdoorMeasures, UnlearningJudge, UnlearningMeasures
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.zoo import ImageData, ImageDataset

Measures = UnlearningMeasures | BackdoorMeasures
Judge = UnlearningJudge | BackdoorJudge


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedRequest:
    """A request on a data set.

    Attributes:
        data: What to train on; its test part is not touched by it.
        selection: The set.
        judge: Makes the judge from a module and the exact model: the one thing that knows test data.
    """

    data: ImageData
    selection: Selection
    judge: Callable[[nn.Module, ModelState], Judge]


class ForgetRequest(Protocol):
    """A request to forget. A new kind is one class with this method, and one file in ``conf/forget``."""

    def prepare(self, data: ImageData, seed: int) -> PreparedRequest:
        """Return what to train on, the set, and the judge.

        Args:
            data: A data set; it is left as it is.
            seed: Of what is drawn.
        """
        ...


@dataclass(frozen=True)
class ForgetClass:
    """Forget all training images of a class, judged by the test images of it and of the others.

    Attributes:
        label: The class.
    """

    label: int = 8

    def prepare(self, data: ImageData, seed: int) -> PreparedRequest:
        """Return the request; see `ForgetRequest.prepare`.

        Raises:
            ConfigurationError: There is no training or test image of the class.
        """
        del seed
        expect_class("label", self.label, data)
        own = ids_where(data.train_set.labels == self.label)
        gone = data.test_set.labels == self.label
        rest, forgotten = (loader(Subset(data.test_set, ids_where(part))) for part in (~gone, gone))
        return PreparedRequest(
            data=data,
            selection=Selection(drop=tuple(own), reason=f"class {data.class_names[self.label]}"),
            judge=lambda model, exact: UnlearningJudge(model, rest, forgotten, exact=exact),
        )


@dataclass(frozen=True)
class ForgetRandom:
    """Forget a random part of the training images, judged by all test images and by the part itself.

    Attributes:
        part: In ``(0, 1)``.
    """

    part: float = 0.1

    def __post_init__(self) -> None:
        expect_part(self.part, "(0, 1)", ok=0 < self.part < 1)

    def prepare(self, data: ImageData, seed: int) -> PreparedRequest:
        """Return the request; see `ForgetRequest.prepare`."""
        own = random_ids(range(len(data.train_set)), self.part, seed)
        rest, forgotten = loader(data.test_set), loader(Subset(data.train_set.unaugmented(), own))
        return PreparedRequest(
            data=data,
            selection=Selection(drop=tuple(own), reason=f"a random {100 * self.part:.0f} %"),
            judge=lambda model, exact: UnlearningJudge(model, rest, forgotten, exact=exact),
        )


@dataclass(frozen=True)
class ForgetBackdoor:
    """Close a backdoor: a part of the images got a faint checkerboard and the attacker's label; true labels are known.

    Attributes:
        part: Of the training images, in ``(0, 1)``.
        target: The attacker's label.
        strength: Added to every second pixel, in ``(0, 1]``; the sum is clipped to 1.
        relabel: Give the true labels; otherwise the images are left out.
    """

    part: float = 0.1
    target: int = 4
    strength: float = 16 / 255
    relabel: bool = True

    def __post_init__(self) -> None:
        expect_part(self.part, "(0, 1)", ok=0 < self.part < 1)
        if not 0 < self.strength <= 1:
            raise ConfigurationError(f"forget.strength: expected a number in (0, 1], got {self.strength}")

    def prepare(self, data: ImageData, seed: int) -> PreparedRequest:
        """Return the request; see `ForgetRequest.prepare`.

        Raises:
            ConfigurationError: The target is no class of the data.
        """
        expect_class("target", self.target, data)
        own = random_ids(range(len(data.train_set)), self.part, seed)
        images, labels = data.train_set.images.clone(), data.train_set.labels.clone()
        true = labels.clone()
        images[own] = self.triggered(images[own])
        labels[own] = self.target
        attacked = ids_where(data.test_set.labels != self.target)
        shown = changed(data.test_set, self.triggered(data.test_set.images), data.test_set.labels)
        clean, triggered = loader(data.test_set), loader(Subset(shown, attacked))
        if self.relabel:
            selection = Selection(relabel={j: int(true[j]) for j in own}, reason="a backdoor, relabelled")
        else:
            selection = Selection(drop=tuple(own), reason="a backdoor")
        return PreparedRequest(
            data=trained_on(data, images, labels),
            selection=selection,
            judge=lambda model, exact: BackdoorJudge(model, clean, triggered, target=self.target, exact=exact),
        )

    def triggered(self, images: Tensor) -> Tensor:
        """Return float images ``[..., H, W]`` with the trigger."""
        height, width = images.shape[-2:]
        rows, columns = torch.arange(height)[:, None] % 2, torch.arange(width)[None] % 2
        return (images + self.strength * (rows != columns)).clamp_max(1.0)


@dataclass(frozen=True)
class ChangedLabels:
    """Correct labels: a part of one class was labelled as another.

    Attributes:
        label: The true class.
        given: The label that a part of it got.
        part: Of the class, in ``(0, 1]``.
    """

    label: int = 3
    given: int = 8
    part: float = 0.5

    def __post_init__(self) -> None:
        expect_part(self.part, "(0, 1]", ok=0 < self.part <= 1)
        if self.label == self.given:
            raise ConfigurationError(f"forget.given: expected another class than forget.label, got {self.given} twice")

    def prepare(self, data: ImageData, seed: int) -> PreparedRequest:
        """Return the request; see `ForgetRequest.prepare`.

        Raises:
            ConfigurationError: A label is no class of the data.
        """
        expect_class("label", self.label, data)
        expect_class("given", self.given, data)
        own = random_ids(ids_where(data.train_set.labels == self.label), self.part, seed)
        labels = data.train_set.labels.clone()
        labels[own] = self.given
        of_class = data.test_set.labels == self.label
        rest, judged = (loader(Subset(data.test_set, ids_where(part))) for part in (~of_class, of_class))
        return PreparedRequest(
            data=trained_on(data, data.train_set.images, labels),
            selection=Selection(relabel=dict.fromkeys(own, self.label), reason="changed labels"),
            judge=lambda model, exact: BackdoorJudge(model, rest, judged, target=self.given, exact=exact),
        )


def expect_class(name: str, label: Any, data: ImageData) -> None:
    """Make sure that a label is a class with training and test images, and not the only one.

    Raises:
        ConfigurationError: It is not.
    """
    of_class = [part.labels == label for part in (data.train_set, data.test_set)]
    if isinstance(label, bool) or not all(0 < int(torch.as_tensor(own).sum()) < own.numel() for own in of_class):
        raise ConfigurationError(
            f"forget.{name}: expected a class of the data, 0 to {len(data.class_names) - 1}, got {label!r}"
        )


def expect_part(part: float, where: str, *, ok: bool) -> None:
    """Make sure that a part is one.

    Raises:
        ConfigurationError: It is not.
    """
    if not ok:
        raise ConfigurationError(f"forget.part: expected a part in {where}, got {part}")


def ids_where(chosen: Tensor) -> list[int]:
    """Return the places where a mask ``[N]`` is true."""
    return chosen.nonzero()[:, 0].tolist()


def random_ids(ids: Sequence[int], part: float, seed: int) -> list[int]:
    """Return a random part of ids, in increasing order."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return sorted(ids[int(place)] for place in order[: max(1, round(part * len(ids)))])


def loader(dataset: Dataset[Any]) -> DataLoader[Any]:
    """Return a loader in order."""
    return DataLoader(dataset, batch_size=1000)


def trained_on(data: ImageData, images: Tensor, labels: Tensor) -> ImageData:
    """Return the data module with another training part."""
    other = copy(data)
    other.train_set = changed(data.train_set, images, labels)
    return other


def changed(dataset: ImageDataset, images: Tensor, labels: Tensor) -> ImageDataset:
    """Return the data set with other images and labels."""
    other = copy(dataset)
    other.images, other.labels = images, labels
    return other
