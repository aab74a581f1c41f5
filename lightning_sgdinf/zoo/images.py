"""Labelled images as plain tensors: what every source of the zoo reads, and what a data module is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        images: ``[N, C, H, W]``, pixels as bytes (uint8, 0 to 255) or as float32 in ``[0, 1]``.
        labels: Int64 ``[N]``, in ``[0, len(class_names))``.
        class_names: Name of each class.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, ids: Tensor) -> LabelledImages:
        """Return the images with the given ids (int64 ``[M]``), in that order."""
        return LabelledImages(images=self.images[ids], labels=self.labels[ids], class_names=self.class_names)


class ImageSource(Protocol):
    """A source of images. A new data set is one class with this one method, and one file in ``conf/dataset``."""

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Read everything one may train and validate on, and the data set's own test part if it has one."""
        ...
