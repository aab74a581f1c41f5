"""The networks of the experiments: functions of the image shape and the number of classes.

``image_shape`` is ``(channels, height, width)``; every network maps ``[B, C, H, W]`` to logits ``[B, classes]``. Those
without convolutions take the shape ``(D,)`` of vectors, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError

Shape = tuple[int, ...]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def logistic_regression(image_shape: Shape, classes: int) -> nn.Sequential:
    """Build one linear layer on the pixels; its loss is convex."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(image_shape), classes))


def mlp(
    image_shape: Shape,
    classes: int,
    *,
    hidden: Sequence[int] = (32,),
    activation: Literal["relu", "tanh", "gelu"] = "relu",
) -> nn.Sequential:
    """Build fully connected layers.

    Args:
        image_shape: Channels, height, width.
        classes: Number of classes.
        hidden: Width of each hidden layer.
        activation: Between the layers; a smooth one makes first-order predictions of removal more faithful.

    Raises:
        ConfigurationError: The activation is unknown.
    """
    if activation not in _ACTIVATIONS:
        raise ConfigurationError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(image_shape)
    for size in hidden:
        layers += [nn.Linear(width, size), _ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


def small_cnn(image_shape: Shape, classes: int, *, channels: Sequence[int] = (8, 16)) -> nn.Sequential:
    """Build two 3 x 3 convolutions with pooling between them; 3,818 parameters for 8 x 8 digits.

    Args:
        image_shape: Channels, height, width.
        classes: Number of classes.
        channels: Of the two convolutions.
    """
    inputs, height, width = _image(image_shape)
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(inputs, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * (height // 2) * (width // 2), classes),
    )


def tiny_net(image_shape: Shape, classes: int, *, width: int = 32) -> nn.Sequential:
    """Build four 3 x 3 convolutions of stride 2 that double the channels; 398,090 parameters for 28 x 28 digits.

    Args:
        image_shape: Channels, height, width.
        classes: Number of classes.
        width: Channels of the first; a quarter of the published 32 has 26,954 parameters.

    References:
        Lyu et al., "Deeper Understanding of Black-box Predictions via Generalized Influence Functions", 2023
        (arXiv:2312.05586).
    """
    channels, height, width_in = _image(image_shape)
    layers: list[nn.Module] = []
    for size in (width, 2 * width, 4 * width, 8 * width):
        layers += [nn.Conv2d(channels, size, 3, stride=2, padding=1), nn.ReLU()]
        channels, height, width_in = size, (height + 1) // 2, (width_in + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width_in, classes))


def mnist_net(image_shape: Shape, classes: int) -> nn.Sequential:
    """Build the network of the SGD-influence paper's MNIST experiment; 13,750 parameters for its images.

    References:
        Hara, Nitanda, Maehara: Data Cleansing for Models Trained with SGD, NeurIPS 2019.
    """
    channels, height, width = _image(image_shape)
    features = 20 * _halved(height - 4) * _halved(width - 4)
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(features, classes),
    )


def cifar_net(image_shape: Shape, classes: int) -> nn.Sequential:
    """Build six convolutions in three blocks, BatchNorm after the first of each; 307,946 parameters for 3 x 32 x 32.

    References:
        Hara, Nitanda, Maehara: Data Cleansing for Models Trained with SGD, NeurIPS 2019.
    """
    channels, height, width = _image(image_shape)
    if min(height, width) < 8:
        raise ConfigurationError(f"cifar_net: expected images of at least 8 x 8 pixels, got {height} x {width}")
    layers: list[nn.Module] = []
    for size in (32, 64, 128):
        layers += [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
        layers += [nn.Conv2d(size, size, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = size
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (height // 8) * (width // 8), classes))


def six_conv_net(image_shape: Shape, classes: int) -> nn.Sequential:
    """Build the network of the storage-efficient method's experiments, one for all data sets: `cifar_net` on images
    whose sides are brought between 32 and 128 pixels; 307,370 parameters for one channel of 28 x 28.

    References:
        Suzuki, Kobayashi and Narihira: Data Cleansing for Deep Neural Networks with Storage-efficient Approximation of
        Influence Functions, 2021 (arXiv:2103.11807).
    """
    channels, *sides = _image(image_shape)
    height, width = (min(max(side, 32), 128) for side in sides)
    network = cifar_net((channels, height, width), classes)
    return network if [height, width] == sides else nn.Sequential(_Resized((height, width)), *network)


def _image(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ConfigurationError(
            f"this network is for images [C, H, W], got inputs of shape {list(shape)}; use model=logreg or model=mlp"
        )
    return shape


class _Resized(nn.Module):
    """Images brought to another size, bilinearly."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        smaller = min(self.size) < min(images.shape[-2:])
        return F.interpolate(images, size=self.size, mode="bilinear", antialias=smaller)


def _halved(size: int) -> int:
    """Return the side of the feature map after pooling, a second 5 x 5 convolution and pooling."""
    after = (size // 2 - 4) // 2
    if after < 1:
        raise ConfigurationError(f"mnist_net: expected images of at least 16 x 16 pixels, got a side of {size + 4}")
    return after
