"""Examples to train, validate and test on, drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError


def split_ids(count: int, sizes: Sequence[int], *, seed: int) -> tuple[Tensor, ...]:
    """Draw disjoint random parts of ``0 .. count - 1``.

    A part does not change when a later one gets another size.

    Args:
        count: Number of examples.
        sizes: Size of each part.
        seed: The same seed gives the same parts.

    Returns:
        One int64 tensor per size, each increasing.

    Raises:
        ConfigurationError: A size is negative, or there are not enough examples.
    """
    if any(size < 0 for size in sizes) or sum(sizes) > count:
        raise ConfigurationError(f"parts of {list(sizes)} examples: expected sizes >= 0 with a sum of at most {count}")
    order = np.random.default_rng(seed).permutation(count)
    bounds = np.cumsum([0, *sizes])
    return tuple(torch.from_numpy(np.sort(order[start:end])) for start, end in pairwise(bounds))
