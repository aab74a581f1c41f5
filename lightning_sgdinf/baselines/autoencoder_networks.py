"""Autoencoders: functions of the shape of an example, each of which maps ``[B, *shape]`` to itself.

Their output lies between the bounds of the examples they are made for, channel by channel: the last layer is a
hyperbolic tangent, stretched. With `scaling` they are those of the comparison of the SGD-influence paper for images of
one channel (11,305 parameters) and of three (80,451).

References:
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (its code).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn


class Bounded(nn.Module):
    r"""A layer between bounds: :math:`l + (h - l)\,(\tanh x + 1) / 2`.

    Args:
        low: :math:`l`, which broadcasts against an example.
        high: :math:`h`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` into the bounds."""
        return self.low + (self.high - self.low) * (torch.tanh(x) + 1) / 2


def scaling(examples: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale of an autoencoder's input, ``(x - shift) / scale``.

    Colour images are standardised channel by channel; all else goes to ``[-1, 1]``.

    Args:
        examples: ``[N, *shape]``.
    """
    if examples.ndim == 4 and examples.shape[1] == 3:
        shift = examples.mean((0, 2, 3))[:, None, None]
        scale = examples.std((0, 2, 3), correction=0)[:, None, None]
    else:
        low, high = examples.min(), examples.max()
        shift, scale = (low + high) / 2, (high - low) / 2
    return shift, torch.where(scale > 0, scale, torch.ones_like(scale))


def autoencoder(examples: Tensor, *, hidden: Sequence[int] = (64, 16)) -> nn.Sequential:
    """Make the convolutional autoencoder of the paper's comparison for images of its kind, a dense one for all else.

    Args:
        examples: ``[N, *shape]``, to take the shape and the bounds from. Images of one or three channels with even
            sides of at least 10 pixels are of its kind.
        hidden: Widths of the dense one up to its middle.
    """
    shape = examples.shape[1:]
    if len(shape) == 3 and shape[0] in (1, 3) and all(side % 2 == 0 and side >= 10 for side in shape[1:]):
        return convolutional(*_bounds(examples.transpose(0, 1)), channels=shape[0])
    low, high = examples.min(), examples.max()
    return dense(shape, low, high, hidden=hidden)


def convolutional(low: Tensor, high: Tensor, *, channels: int) -> nn.Sequential:
    """Make two convolutions with pooling and three transposed ones, for sides that are even and at least 10.

    Args:
        low: Least value of each channel, ``[channels, 1, 1]``.
        high: Largest value.
        channels: 1 for the one of MNIST; others are as that of CIFAR-10.
    """
    wide, narrow = (24, 12) if channels == 1 else (64, 32)
    return nn.Sequential(
        nn.Conv2d(channels, wide, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(wide, narrow, 3),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.ConvTranspose2d(narrow, narrow, 5, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(narrow, wide, 4),
        nn.ReLU(),
        nn.ConvTranspose2d(wide, channels, 3),
        Bounded(low, high),
    )


def dense(shape: Sequence[int], low: Tensor, high: Tensor, *, hidden: Sequence[int]) -> nn.Sequential:
    """Make linear layers down to the middle and up again, ReLU between them.

    Args:
        shape: Of an example.
        low: Least value.
        high: Largest value.
        hidden: Widths up to the middle, which is the last of them; at least one.
    """
    size = prod(shape)
    widths = [size, *hidden, *reversed(hidden[:-1]), size]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return nn.Sequential(nn.Flatten(), *layers[1:], nn.Unflatten(1, tuple(shape)), Bounded(low, high))


def _bounds(by_channel: Tensor) -> tuple[Tensor, Tensor]:
    """Return least and largest value of each channel of ``[C, N, H, W]``, as ``[C, 1, 1]``."""
    flat = by_channel.flatten(1)
    return flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
