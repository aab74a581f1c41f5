"""The most harmful examples are kept, under the label that the model gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_sgdinf.cleansing.base import CleansingContext, most_harmful_ids
from lightning_sgdinf.cleansing.top_fraction import count_of
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


@final
@dataclass(frozen=True)
class Relabel:
    """Give the most harmful examples the class that the trained model predicts for them.

    An example whose prediction equals its label cannot be improved in this way and is left as it is; the reason says
    how many these were. Needs `CleansingContext.labels` and `CleansingContext.predictions`. In a configuration file::

        _target_: lightning_sgdinf.cleansing.Relabel
        k: 30

    Args:
        k: How many of the most harmful examples to look at, from 0 on.
        fraction: The same as a share of the training set, in ``[0, 1)``; give one of the two.

    Raises:
        ConfigurationError: Both or none are given, or the one given is outside its range.
    """

    k: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.k is None) == (self.fraction is None):
            raise ConfigurationError(f"expected one of k and fraction, got k={self.k} and fraction={self.fraction}.")
        if self.k is not None and self.k < 0:
            raise ConfigurationError(f"k: expected 0 or more examples to relabel, got {self.k}.")
        if self.fraction is not None and not 0.0 <= self.fraction < 1.0:
            raise ConfigurationError(f"fraction: expected a share of the training set in [0, 1), got {self.fraction}.")

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose what to relabel; see `Relabel`.

        Raises:
            ConfigurationError: The context lacks labels or predictions, or they do not fit the scores; or there are
                not so many examples, or nothing is left of a class, and the context refuses that.
        """
        total = len(scores)
        count = self.k if self.k is not None else count_of(self.fraction or 0.0, total)
        count = context.allowed(count, total)
        ids = most_harmful_ids(scores, count, query)
        given, predicted = _classes(context, ids, total)
        relabel = {j: new for j, old, new in zip(ids, given.tolist(), predicted.tolist(), strict=True) if old != new}
        skipped = count - len(relabel)
        reason = (
            f"the {count} most harmful examples get the model's own label, which for {skipped} of them is the given one"
        )
        return context.checked(Selection(relabel=relabel, reason=reason))


def _classes(context: CleansingContext, ids: tuple[int, ...], total: int) -> tuple[Tensor, Tensor]:
    if context.labels is None or context.predictions is None:
        missing = " and ".join(n for n in ("labels", "predictions") if getattr(context, n) is None)
        raise ConfigurationError(f"relabelling needs {missing} in the cleansing context; give them, or drop instead.")
    if context.labels.shape != (total,) or context.labels.is_floating_point():
        raise ConfigurationError(
            f"labels: expected {total} whole numbers, one per score, got {context.labels.dtype} of shape "
            f"{tuple(context.labels.shape)}."
        )
    given = context.labels[torch.tensor(ids, dtype=torch.int64)]
    predicted = context.predictions(ids) if ids else given
    if predicted.shape != (len(ids),) or predicted.is_floating_point():
        raise ConfigurationError(
            f"predictions: expected {len(ids)} classes as whole numbers, got {predicted.dtype} of shape "
            f"{tuple(predicted.shape)}; take the argmax over classes."
        )
    return given, predicted
