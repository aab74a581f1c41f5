"""Label noise that follows what people confuse: some classes lose a part of their examples to one other class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.label_noise import NoisyLabels, check_fraction

CUSTOMARY: tuple[Mapping[str, str], ...] = (
    {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"},
    {"ankle boot": "sneaker", "sneaker": "sandal", "pullover": "shirt", "coat": "dress", "dress": "coat"},
    {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"},
)
"""The class maps in common use for MNIST, Fashion-MNIST and CIFAR-10."""


class AsymmetricNoise:
    """Of each class of a map, a random part of the examples gets the label of the class it is mapped to.

    In a configuration::

        label_noise:
          _target_: lightning_sgdinf.zoo.AsymmetricNoise
          fraction: 0.2
          class_map: {cat: dog, dog: cat}

    Args:
        fraction: Part of each class of the map to change, in ``[0, 1]``: exactly ``round(fraction * n)`` of its ``n``
            examples. Of the whole training set it is less, since classes outside the map keep their labels.
        class_map: From class to class, by name or number. ``None`` for the one in common use for MNIST, Fashion-MNIST
            or CIFAR-10, recognised by the names of the classes.

    References:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise", CVPR 2017 (arXiv:1609.03683), for MNIST and
        CIFAR-10; Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
        Labels", NeurIPS 2018 (arXiv:1805.07836), for Fashion-MNIST.
    """

    def __init__(self, fraction: float, *, class_map: Mapping[str | int, str | int] | None = None) -> None:
        check_fraction(fraction)
        self.fraction = fraction
        self.class_map = None if class_map is None else dict(class_map)

    def apply(self, labels: Tensor, *, ids: Tensor, class_names: Sequence[str], seed: int) -> NoisyLabels:
        """See `LabelNoise.apply`.

        Raises:
            ConfigurationError: The map names a class that does not exist, or maps one to itself; or there is no map in
                common use for these classes.
        """
        del ids
        generator = np.random.default_rng(seed)
        noisy = labels.clone()
        for source, target in sorted(self._numbers(class_names).items()):
            members = np.flatnonzero(labels.numpy() == source)
            chosen = generator.permutation(members)[: round(self.fraction * len(members))]
            noisy[torch.from_numpy(chosen)] = target
        return NoisyLabels(labels=noisy, true_labels=labels.clone())

    def _numbers(self, class_names: Sequence[str]) -> dict[int, int]:
        chosen = self.class_map
        if chosen is None:
            chosen = next((m for m in CUSTOMARY if {*m, *m.values()} <= set(class_names)), None)
        if chosen is None:
            raise ConfigurationError(
                f"class_map: there is none in common use for the classes {', '.join(class_names)}; give one, such as "
                f"{{{class_names[0]}: {class_names[-1]}}}"
            )
        numbers = {_number(a, class_names): _number(b, class_names) for a, b in chosen.items()}
        if same := [class_names[a] for a, b in numbers.items() if a == b]:
            raise ConfigurationError(f"class_map: expected classes to be mapped to others, got {same[0]} to itself")
        return numbers


def _number(entry: str | int, class_names: Sequence[str]) -> int:
    """Return a class by name, else by number."""
    if str(entry) in class_names:
        return class_names.index(str(entry))
    if isinstance(entry, int) and 0 <= entry < len(class_names):
        return entry
    raise ConfigurationError(f"class_map: expected names or numbers of {', '.join(class_names)}, got {entry!r}")
