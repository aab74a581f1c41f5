"""Agreement of two sets of scores, e.g. an estimate and the truth by re-training.

Rank correlations judge the whole order; `jaccard_of_extremes` judges only the examples anybody would act on.

References:
    Hara, Nitanda, Maehara. *Data Cleansing for Models Trained with SGD*. NeurIPS 2019, section 7.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.extras import require

stats = require("scipy.stats", extra="report")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of two sets of scores of the same examples.

    Attributes:
        kendall: Kendall's tau-b, in ``[-1, 1]``.
        spearman: Spearman's rank correlation, in ``[-1, 1]``.
        pearson: Pearson's correlation, in ``[-1, 1]``.
        jaccard: Overlap of the ``2 k`` extreme examples, in ``[0, 1]``.
        k: How many examples of each end entered ``jaccard``.
        n: Number of examples.
    """

    kendall: float
    spearman: float
    pearson: float
    jaccard: float
    k: int
    n: int


def measure_agreement(estimated: ArrayLike, true: ArrayLike, *, k: int = 10) -> Agreement:
    """Compute all measures of agreement at once.

    Args:
        estimated: ``[N]`` scores.
        true: ``[N]`` scores of the same examples.
        k: How many examples of each end `jaccard_of_extremes` compares, ``1 <= k <= N / 2``.

    Raises:
        ConfigurationError: Different lengths, fewer than two examples, constant scores, or ``k`` out of range.
        NonFiniteError: NaN or infinity among the scores.
    """
    a, b = _pair(estimated, true)
    return Agreement(
        kendall=kendall_tau(a, b),
        spearman=spearman(a, b),
        pearson=pearson(a, b),
        jaccard=jaccard_of_extremes(a, b, k=k),
        k=k,
        n=len(a),
    )


def kendall_tau(estimated: ArrayLike, true: ArrayLike) -> float:
    """Return Kendall's tau-b: pairs in the same order minus pairs in the opposite one, over all, corrected for ties."""
    a, b = _varying(estimated, true)
    return float(stats.kendalltau(a, b).statistic)


def spearman(estimated: ArrayLike, true: ArrayLike) -> float:
    """Return Spearman's correlation: Pearson's correlation of the ranks."""
    a, b = _varying(estimated, true)
    return float(stats.spearmanr(a, b).statistic)


def pearson(estimated: ArrayLike, true: ArrayLike) -> float:
    """Return Pearson's correlation: 1 if one is an increasing straight line of the other."""
    a, b = _varying(estimated, true)
    return float(stats.pearsonr(a, b).statistic)


def jaccard_of_extremes(estimated: ArrayLike, true: ArrayLike, *, k: int = 10) -> float:
    """Return the overlap ``|A & B| / |A | B|`` of the ``k`` smallest and ``k`` largest scores; ties go to the lower id.

    Raises:
        ConfigurationError: Different lengths, or ``k`` outside ``[1, N / 2]``.
    """
    a, b = _pair(estimated, true)
    if not 1 <= k <= len(a) // 2:
        raise ConfigurationError(f"k: expected 1 to {len(a) // 2} (half of {len(a)} examples), got {k}")
    first, second = _extremes(a, k), _extremes(b, k)
    return len(first & second) / len(first | second)


def _extremes(scores: np.ndarray, k: int) -> set[int]:
    order = np.argsort(scores, kind="stable")
    return {*order[:k].tolist(), *order[-k:].tolist()}


def _pair(estimated: ArrayLike, true: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(estimated, np.float64), np.asarray(true, np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ConfigurationError(
            f"agreement: expected scores of the same examples, both of shape [N], N >= 2, got {a.shape} and {b.shape}"
        )
    for name, scores in (("estimated", a), ("true", b)):
        if not np.isfinite(scores).all():
            raise NonFiniteError(
                f"{name}: score of example {int(np.flatnonzero(~np.isfinite(scores))[0])} is not finite"
            )
    return a, b


def _varying(estimated: ArrayLike, true: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _pair(estimated, true)
    for name, scores in (("estimated", a), ("true", b)):
        if np.ptp(scores) == 0:
            raise ConfigurationError(
                f"{name}: all {len(scores)} scores are {scores[0]}; constants correlate with nothing"
            )
    return a, b
