"""Changes of a batch between the data set and the step: other labels, other inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def replace_first(batch: Any, positions: Sequence[int], inputs: Sequence[Tensor]) -> Any:
    """Put new inputs into a batch ``(x, ...)`` whose first item is a tensor of inputs ``[B, ...]``.

    Raises:
        ConfigurationError: The batch is of another form, or an input has another shape than those in it.
    """
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        raise ConfigurationError(
            f"cannot find the inputs in a batch of type {type(batch).__name__}; pass replace_inputs, a function "
            "(batch, positions, inputs) -> batch"
        )
    x = batch[0].clone()
    for position, value in zip(positions, inputs, strict=True):
        if value.shape != x.shape[1:]:
            raise ConfigurationError(
                f"expected inputs of shape {list(x.shape[1:])}, as they are in the batch, got {list(value.shape)}; "
                "give them as the data set's items have them"
            )
        x[position] = value.to(x)
    return [x, *batch[1:]] if isinstance(batch, list) else (x, *batch[1:])


@dataclass(frozen=True, slots=True, eq=False)
class ReplacedInputs:
    """The edit that gives some examples other inputs, e.g. images without a trigger.

    Attributes:
        inputs: New input by example id, as the batch has it: after the data set's transforms, without
            random augmentation.
        replace_inputs: Puts inputs into a batch.
    """

    inputs: Mapping[int, Tensor]
    replace_inputs: Callable[[Any, Sequence[int], Sequence[Tensor]], Any] = replace_first

    def __call__(self, batch: Any, ids: np.ndarray) -> Any:
        """Return the batch with the new inputs; see `Edit`."""
        positions = [place for place, example in enumerate(ids.tolist()) if example in self.inputs]
        if not positions:
            return batch
        return self.replace_inputs(batch, positions, [self.inputs[int(ids[p])] for p in positions])


def one_after_another(*edits: Edit | None) -> Edit | None:
    """Return the edit that does several, in their order; ``None`` if there are none."""
    given = [edit for edit in edits if edit is not None]

    def edit(batch: Any, ids: np.ndarray) -> Any:
        for one in given:
            batch = one(batch, ids)
        return batch

    return edit if given else None
