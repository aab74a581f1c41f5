"""The number of examples to leave out, chosen by training again and looking at held-out examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from lightning_sgdinf.cleansing.attempts import unless_diverged
from lightning_sgdinf.cleansing.base import CleansingContext, CleansingStrategy
from lightning_sgdinf.cleansing.grid import checked_grid, selections
from lightning_sgdinf.cleansing.top_k import TopK
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection, Trial


@final
@dataclass(frozen=True)
class Validated:
    """Change as many of the most harmful examples as serves held-out data best.

    Every count of the grid, and 0, is tried: the model is trained again and `CleansingContext.evaluate` says how well
    it then does. The smallest count with the lowest value wins, so examples are changed only where that helped, be it
    by luck: of many counts one is likely to look better than it is. `Stable` changes nothing before the difference is
    beyond chance. The scores must come from another part of the validation set than the values
    (`lightning_sgdinf.validation_data`), and neither from the test set: choosing on data that the scores were made
    for is optimistic. The cost is one retraining per count. In a configuration file::

        _target_: lightning_sgdinf.cleansing.Validated
        grid: [1, 3, 10, 30, 100, 300]
        patience: 3

    Args:
        grid: Counts to try, from 1 on, increasing; ``None`` for 3, 10, 30, 100 and so on up to half of the training
            set. Of counts that are not below the size of the training set `CleansingContext.on_excess` decides.
        patience: Stop after so many counts in a row without a new best; ``None`` tries them all.
        treatment: Makes the strategy for one count: `TopK` drops, `Relabel` gives other labels.

    Raises:
        ConfigurationError: The grid is empty, not increasing or not above 0, or ``patience`` is below 1.
    """

    grid: Sequence[int] | None = None
    patience: int | None = None
    treatment: Callable[[int], CleansingStrategy] = TopK

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(
                f"patience: expected 1 or more counts without a new best, or None, got {self.patience}."
            )
        object.__setattr__(self, "grid", checked_grid(self.grid))

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose the number and with it the examples; see `Validated`.

        Returns:
            The best selection tried; ``trace`` holds every count tried with its value.

        Raises:
            ConfigurationError: The context has no ``evaluate``, or a count leaves too little and the context refuses
                that; nothing was trained then.
            NonFiniteError: The value with nothing changed is NaN or infinite. A count with such a value is skipped.
        """
        if context.evaluate is None:
            raise ConfigurationError(
                "choosing by validation needs `evaluate` in the cleansing context: a function from a selection to the "
                "held-out loss or error after training again with it."
            )
        candidates = selections(self.grid, self.treatment, scores, context, query)
        best = Selection()
        trials = [_tried(best, 0, context.evaluate)]
        lowest, since = trials[0], 0
        for count, selection in candidates.items():
            if since == self.patience:
                break
            since += 1
            if (tried := unless_diverged(count, partial(_tried, selection, count, context.evaluate))) is None:
                continue
            trials.append(tried)
            if trials[-1].value < lowest.value:
                best, lowest, since = selection, trials[-1], 0
        reason = (
            f"of {len(trials)} counts tried, {lowest.count} has the lowest held-out value: "
            f"{lowest.value:.6g} against {trials[0].value:.6g} with 0" + (f"; {best.reason}" if best.reason else "")
        )
        return replace(best, reason=reason, trace=tuple(trials))


def _tried(selection: Selection, count: int, evaluate: Callable[[Selection], float]) -> Trial:
    value = float(evaluate(selection))
    if not math.isfinite(value):
        raise NonFiniteError(
            f"held-out value with {count} examples changed: expected a finite number, got {value}; did training "
            "without them diverge? Take smaller counts or a smaller learning rate."
        )
    return Trial(count, value)
