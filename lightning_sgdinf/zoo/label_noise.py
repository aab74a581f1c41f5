"""Labels made wrong on purpose, so that finding them can be measured."""

from __future__ import annotations

from dataclasses import dataclass

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
        flipped: Where the two differ, bool ``[N]``.
    """

    labels: Tensor
    true_labels: Tensor
    flipped: Tensor


def flip_labels(labels: Tensor, *, fraction: float, classes: int, seed: int) -> NoisyLabels:
    """Symmetric label noise: give a random part of the examples another class, each other class being as likely.

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
    if not 0 <= fraction <= 1:
        raise ConfigurationError(f"fraction of labels to flip: expected a number in [0, 1], got {fraction}")
    if fraction > 0 and classes < 2:
        raise ConfigurationError(f"flipping labels needs at least 2 classes, got {classes}")
    generator = np.random.default_rng(seed)
    chosen = torch.from_numpy(generator.permutation(len(labels))[: round(fraction * len(labels))])
    noisy, flipped = labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    flipped[chosen] = True
    if len(chosen):
        shift = torch.from_numpy(generator.integers(1, classes, size=len(chosen)))
        noisy[chosen] = (labels[chosen] + shift) % classes
    return NoisyLabels(labels=noisy, true_labels=labels.clone(), flipped=flipped)
