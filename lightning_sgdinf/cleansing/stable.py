r"""The number of examples to leave out, chosen on held-out examples: none unless chance cannot explain the gain.

With :math:`v_i(m)` the loss or error of held-out example ``i`` after training again without the ``m`` most harmful
examples, the gain is the mean of the paired differences :math:`d_i = v_i(0) - v_i(m)`. Its lower confidence bound is
found by drawing the held-out examples anew, with replacement (percentile bootstrap), example by example in pairs, so
that what is hard for both models cancels.

References:
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.cleansing.attempts import unless_diverged
from lightning_sgdinf.cleansing.base import CleansingContext, CleansingStrategy
from lightning_sgdinf.cleansing.grid import checked_grid, selections
from lightning_sgdinf.cleansing.top_k import TopK
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.extras import require
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection, Trial


@final
@dataclass(frozen=True)
class Stable:
    """Change the smallest number of the most harmful examples whose gain on held-out data is beyond chance, or none.

    The counts of the grid are tried from the smallest on: the model is trained again, and
    `CleansingContext.evaluate_each` says how well it does on every held-out example. The first count whose lower
    confidence bound of the gain is above 0 is taken; if there is none, nothing is changed. Beside `Validated` it misses
    small gains and seldom does harm. Trying several counts gives chance several goes: each passes by luck with
    probability ``1 - confidence``, and one of them with up to the number of counts times that, unless ``simultaneous``.

    The cost is one retraining per count up to the one that is taken; the models are those that `Validated` trains, so
    with a `lightning_sgdinf.cleansing.RetrainingCache` both strategies choose from one set of retrainings. In a
    configuration file::

        _target_: lightning_sgdinf.cleansing.Stable
        grid: [10, 30, 100, 300]
        confidence: 0.95

    Args:
        grid: Counts to try, from 1 on, increasing; ``None`` for 3, 10, 30, 100 and so on up to half of the training
            set. Of counts that are not below the size of the training set `CleansingContext.on_excess` decides.
        confidence: Of the one-sided bound, in ``(0, 1)``.
        resamples: How often the held-out examples are drawn anew, at least 100.
        simultaneous: Let the confidence hold for all counts together (Bonferroni): nothing that does not help is then
            changed with at least that probability.
        treatment: Makes the strategy for one count: `TopK` drops, `Relabel` gives other labels.

    Raises:
        ConfigurationError: An argument is out of its range, or ``resamples`` is too small for the confidence.
    """

    grid: Sequence[int] | None = None
    confidence: float = 0.95
    resamples: int = 2000
    simultaneous: bool = False
    treatment: Callable[[int], CleansingStrategy] = TopK

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigurationError(f"confidence: expected a share in (0, 1), got {self.confidence}.")
        if self.resamples < 100:
            raise ConfigurationError(f"resamples: expected 100 or more, got {self.resamples}.")
        object.__setattr__(self, "grid", checked_grid(self.grid))

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose the number and with it the examples; see `Stable`.

        Returns:
            The selection; ``trace`` holds every count tried with its value and the lower bound of its gain.

        Raises:
            ConfigurationError: The context has no ``evaluate_each``, or a count leaves too little and the context
                refuses that; nothing was trained then. Or the confidence needs more resamples.
            MissingExtraError: scipy is not installed.
            NonFiniteError: A value with nothing changed is NaN or infinite. A count with such values is skipped.
        """
        if context.evaluate_each is None:
            raise ConfigurationError(
                "choosing by validation needs `evaluate_each` in the cleansing context: a function from a selection to "
                "the held-out loss or error of every example after training again with it."
            )
        candidates = selections(self.grid, self.treatment, scores, context, query)
        level = 1 - (1 - self.confidence) / (max(1, len(candidates)) if self.simultaneous else 1)
        if (1 - level) * self.resamples < 1:
            raise ConfigurationError(
                f"resamples: expected {int(1 / (1 - level)) + 1} or more for a bound of confidence {level:.6g}, got "
                f"{self.resamples}."
            )
        before = _values(Selection(), 0, context.evaluate_each)
        trials = [Trial(0, float(before.mean()), 0.0)]
        for count, selection in candidates.items():
            after = unless_diverged(count, partial(_values, selection, count, context.evaluate_each))
            if after is None:
                continue
            if after.shape != before.shape:
                raise ConfigurationError(
                    f"evaluate_each: expected values of the same {len(before)} examples each time, got {len(after)}"
                )
            low = lower_bound(before - after, confidence=level, resamples=self.resamples, seed=context.seed)
            trials.append(Trial(count, float(after.mean()), low))
            if low > 0:
                reason = (
                    f"{count} is the smallest of the counts tried whose gain is beyond chance: {trials[-1].value:.6g} "
                    f"against {trials[0].value:.6g} with 0, at least {low:.3g} lower at {level:.4g} confidence; "
                    f"{selection.reason}"
                )
                return replace(selection, reason=reason, trace=tuple(trials))
        reason = f"none of {len(candidates)} counts tried has a gain beyond chance at {level:.4g} confidence"
        return Selection(reason=reason, trace=tuple(trials))


def lower_bound(differences: Tensor, *, confidence: float, resamples: int, seed: int) -> float:
    """Compute the one-sided lower confidence bound of a mean, by the percentile bootstrap.

    Args:
        differences: ``[V]``.
        confidence: In ``(0, 1)``.
        resamples: How often they are drawn anew.
        seed: Of the draws; no global generator is read or moved.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    stats = require("scipy.stats", extra="report")
    values = differences.detach().to("cpu", torch.float64).numpy()
    if not np.ptp(values):
        return float(values[0])  # nothing varies, so there is no spread to look at
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, min(resamples, 4_000_000 // len(values))),
        confidence_level=confidence,
        alternative="greater",
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low)


def _values(selection: Selection, count: int, evaluate_each: Callable[[Selection], Tensor]) -> Tensor:
    values = evaluate_each(selection).detach().to("cpu", torch.float64)
    if values.ndim != 1 or not len(values):
        raise ConfigurationError(f"evaluate_each: expected one value per held-out example, got {list(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        wrong = int((~torch.isfinite(values)).nonzero()[0])
        raise NonFiniteError(
            f"held-out value of example {wrong} with {count} examples changed: expected a finite number, got "
            f"{values[wrong].item()}; did training without them diverge? Take smaller counts or a smaller learning "
            "rate."
        )
    return values
