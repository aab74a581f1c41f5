"""Changes of a batch between the data set and the step: other labels, other inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, as_tensor

from lightning_sgdinf.errors import ConfigurationError

Edit = Callable[[Any, np.ndarray], Any]
"""Is given a batch as ``training_step`` gets it, and the ids of its examples ``[B]``; returns the batch to take."""

ReplaceLabels = Callable[[Any, Sequence[int], Sequence[int]], Any]
"""Is given a collated batch, positions in it and their new labels; returns the batch with these labels."""


def replace_second(batch: Any, positions: Sequence[int], labels: Sequence[int]) -> Any:
    """Put new labels into a batch ``(x, y, ...)`` whose second item is a tensor of labels ``[B]`` or ``[B, 1]``.

    Raises:
        ConfigurationError: The batch or its labels are of another form.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        raise ConfigurationError(
            f"cannot find the labels in a batch of type {type(batch).__name__}; pass replace_labels, a function "
            "(batch, positions, labels) -> batch"
        )
    target = batch[1].clone()
    if target.ndim != 1 and target.shape[1:] != (1,):
        raise ConfigurationError(
            f"expected labels [B] or [B, 1] to put others in their place, got shape {list(target.shape)} (one-hot?); "
            "pass replace_labels, a function (batch, positions, labels) -> batch"
        )
    new = as_tensor(list(labels), dtype=target.dtype, device=target.device)
    target[list(positions)] = new.reshape(-1, *target.shape[1:])
    return type(batch)((batch[0], target, *batch[2:])) if isinstance(batch, list) else (batch[0], target, *batch[2:])


def relabelled(labels: Mapping[int, int], replace_labels: ReplaceLabels = replace_second) -> Edit:
    """Return the edit that gives some examples other labels.

    Args:
        labels: New label by example id.
        replace_labels: Puts labels into a batch.
    """

    def edit(batch: Any, ids: np.ndarray) -> Any:
        positions = [place for place, example in enumerate(ids.tolist()) if example in labels]
        return replace_labels(batch, positions, [labels[int(ids[p])] for p in positions]) if positions else batch

    return edit
