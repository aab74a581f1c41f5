"""The labels that a data set names without being read: classes and words as they are, targets as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, StackDataset, Subset


def display_labels(dataset: Any) -> tuple[str, ...] | None:
    """Return the labels of a data set as text, where it names them; ``None`` where it does not.

    They are looked for in ``targets``, ``labels`` and the second tensor of a ``TensorDataset``, and below torch's own
    wrappers: a ``Subset`` (what ``random_split`` makes), a ``ConcatDataset``, the second part of a ``StackDataset``.
    Numbers with a fraction have six digits.
    """
    if _is_plainly(dataset, Subset):
        below = display_labels(dataset.dataset)
        return None if below is None else tuple(below[i] for i in dataset.indices)
    if _is_plainly(dataset, ConcatDataset):
        parts = [display_labels(part) for part in dataset.datasets]
        return None if None in parts else tuple(label for part in parts for label in part or ())
    for labels in _candidates(dataset):
        if labels is not None and hasattr(labels, "__len__") and len(labels) == len(dataset):
            values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
            texts = [_text(value) for value in values]
            if None not in texts:
                return tuple(text for text in texts if text is not None)
    return None


def _candidates(dataset: Any) -> Sequence[Any]:
    tensors = getattr(dataset, "tensors", None) or ()
    stacked = dataset.datasets if _is_plainly(dataset, StackDataset) and isinstance(dataset.datasets, tuple) else ()
    named = (getattr(dataset, "targets", None), getattr(dataset, "labels", None))
    return (*named, *tensors[1:2], *stacked[1:2])


def _is_plainly(dataset: Any, kind: type) -> bool:
    """Return True for this kind of wrapper, unless a subclass of it makes other items than it would."""
    return isinstance(dataset, kind) and type(dataset).__getitem__ is kind.__getitem__  # type: ignore[attr-defined]


def _text(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:  # a column of targets, [N, 1]
        value = value[0]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (int, str, bool)) else None
