"""Labels made wrong on purpose, so that finding them can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyLabels:
    """Labels of which some are wrong.

    Attributes:
        labels: What the model is trained with, int64 ``[N]``.
        true_labels: What they were before, int64 ``[N]``.
    """

    labels: Tensor
    true_labels: Tensor

    @property
    def flipped(self) -> Tensor:
        """True where the two differ, bool ``[N]``."""
        return self.labels != self.true_labels


@runtime_checkable
class LabelNoise(Protocol):
    """Makes labels wrong. A new kind is one class with this one method, and one file in ``conf/noise``."""

    def apply(self, labels: Tensor, *, ids: Tensor, class_names: Sequence[str], seed: int) -> NoisyLabels:
        """Return the labels before and after.

        Args:
            labels: True labels, int64 ``[N]`` in ``[0, len(class_names))``.
            ids: Places of the examples in the training part of their source, int64 ``[N]``.
            class_names: Name of each class.
            seed: The same seed changes the same labels in the same way.
        """
        ...


class SymmetricNoise:
    """A random part of the examples gets another class, each other class being as likely.

    In a configuration::

        label_noise:
          _target_: lightning_sgdinf.zoo.SymmetricNoise
          fraction: 0.1

    Args:
        fraction: Part to change, in ``[0, 1]``; exactly ``round(fraction * N)`` labels change.
    """

    def __init__(self, fraction: float) -> None:
        check_fraction(fraction)
        self.fraction = fraction

    def apply(self, labels: Tensor, *, ids: Tensor, class_names: Sequence[str], seed: int) -> NoisyLabels:
        """See `LabelNoise.apply`."""
        del ids
        return flip_labels(labels, fraction=self.fraction, classes=len(class_names), seed=seed)


def flip_labels(labels: Tensor, *, fraction: float, classes: int, seed: int) -> NoisyLabels:
    """Give a random part of the examples another class, each other class being as likely (symmetric label noise).

    Exactly ``round(fraction * N)`` labels change.

    Args:
        labels: Int64 ``[N]`` in ``[0, classes)``.
        fraction: Part to change, in ``[0, 1]``.
        classes: Number of classes, at least 2 if anything is to change.
        seed: The same seed changes the same labels in the same way.

    Returns:
        The labels before and after.

    Raises:
        ConfigurationError: The fraction is outside ``[0, 1]``, or there is no other class.
    """
    check_fraction(fraction)
    if fraction > 0 and classes < 2:
        raise ConfigurationError(f"flipping labels needs at least 2 classes, got {classes}")
    generator = np.random.default_rng(seed)
    chosen = torch.from_numpy(generator.permutation(len(labels))[: round(fraction * len(labels))])
    noisy = labels.clone()
    if len(chosen):
        shift = torch.from_numpy(generator.integers(1, classes, size=len(chosen)))
        noisy[chosen] = (labels[chosen] + shift) % classes
    return NoisyLabels(labels=noisy, true_labels=labels.clone())


def check_fraction(fraction: float) -> None:
    """Refuse what is no part of a whole.

    Raises:
        ConfigurationError: It is outside ``[0, 1]``.
    """
    if not 0 <= fraction <= 1:
        raise ConfigurationError(f"fraction of labels to flip: expected a number in [0, 1], got {fraction}")
