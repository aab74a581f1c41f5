"""Random changes of training images, drawn from torch's global generator alone, so that a replay draws them again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(image: Tensor, padding: int) -> Tensor:
    """Crop a part of the image's own size, at a random place of it with so many black pixels on every side.

    Args:
        image: ``[C, H, W]``.
        padding: At least 0.
    """
    height, width = image.shape[-2:]
    top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
    return F.pad(image, (padding,) * 4)[..., top : top + height, left : left + width]


def random_flip(image: Tensor) -> Tensor:
    """Mirror the image ``[C, H, W]`` with probability 1/2, left and right exchanged."""
    return image.flip(-1) if int(torch.randint(0, 2, ())) else image
