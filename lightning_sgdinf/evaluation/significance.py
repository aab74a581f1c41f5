"""Did cleansing help, or was it luck? Tests of the difference between runs before and after.

Which one: runs that share their seed before and after are *paired*. With more than a handful use `paired_t_test`;
with few, `sign_flip_test` assumes only that luck is symmetric, at the price of a smallest p of ``2 / 2^n``, which is
why five pairs can never reach 0.05. Runs that have nothing to do with each other need `unpaired_t_test`. All are
two-sided. `wilcoxon_test` goes by the ranks of the differences, for runs with outliers. Who tests several numbers of
removed examples corrects for it: `holm`. One run alone: `mcnemar_test`, of what each test example was taken for.

References:
    Holm. *A simple sequentially rejective multiple test procedure*. Scandinavian Journal of Statistics 6, 1979.
    McNemar. *Note on the sampling error of the difference between correlated proportions*. Psychometrika 12, 1947.
    Hartigan. *Using subsample values as typical values*. JASA 64, 1969 (the interval of `sign_flip_test`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.extras import require

stats = require("scipy.stats", extra="report")

MOST_PAIRS = 16
"""Up to here all sign flips are tried; with more pairs the t test serves as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Result of a test of ``after - before``.

    Attributes:
        test: Name of the test, e.g. ``"paired t test"``.
        mean_difference: Mean of ``after - before``; negative is a fall.
        low: Lower end of its confidence interval; ``-inf`` if there are too few runs for one, NaN if undefined.
        high: Upper end.
        p_value: Two-sided; NaN if undefined because no run differs from another.
        n: Number of pairs, or of runs in the smaller group.
        confidence: Coverage of the interval.
        of: The things that were compared, in the plural.
    """

    test: str
    mean_difference: float
    low: float
    high: float
    p_value: float
    n: int
    confidence: float = 0.95
    of: str = "runs"

    @property
    def significant(self) -> bool:
        """True if the test rejects "no difference" at level ``1 - confidence``."""
        return self.p_value < 1 - self.confidence

    def sentence(self) -> str:
        """Test, number of runs and p value in words."""
        if math.isnan(self.p_value):
            return f"{self.test} over {self.n} {self.of}: undefined, all changed by the same amount"
        p_value = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else f"p = {self.p_value:.1e}"
        return f"{self.test} over {self.n} {self.of}: {p_value}"


def paired_t_test(before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95) -> Comparison:
    """Apply Student's t test of the mean difference of pairs, ``t = mean(d) / (std(d) / sqrt(n))``, two-sided.

    Args:
        before: ``[n]`` errors before, one per run.
        after: ``[n]`` errors after, of the same runs in the same order.
        confidence: Coverage of the interval, in ``(0, 1)``.

    Raises:
        ConfigurationError: Fewer than two pairs, or different lengths.
        NonFiniteError: NaN or infinity among the errors.
    """
    a, b = _runs(before, after, paired=True)
    difference = b - a
    name = "paired t test"
    if (
        np.ptp(difference) <= 1e-12 * np.abs(difference).max()
    ):  # equal but for rounding: t divides by a spread of nothing
        return _undefined(name, float(difference.mean()), len(a), confidence)
    result = stats.ttest_rel(b, a)
    interval = result.confidence_interval(confidence)
    return Comparison(
        test=name,
        mean_difference=float(difference.mean()),
        low=float(interval.low),
        high=float(interval.high),
        p_value=float(result.pvalue),
        n=len(a),
        confidence=confidence,
    )


def unpaired_t_test(before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95) -> Comparison:
    """Apply Welch's t test of the difference of two means, two-sided; as `paired_t_test`, but lengths may differ.

    ``t = (mean(b) - mean(a)) / sqrt(v_a + v_b)``, ``v = var / n``, with
    ``(v_a + v_b)^2 / sum(v^2 / (n - 1))`` degrees of freedom.
    """
    a, b = _runs(before, after, paired=False)
    name = "unpaired t test"
    difference = float(b.mean() - a.mean())
    if max(np.ptp(a), np.ptp(b)) <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        return _undefined(name, difference, min(len(a), len(b)), confidence)
    squares = np.array([np.var(runs, ddof=1) / len(runs) for runs in (a, b)])
    error = math.sqrt(squares.sum())
    law = stats.t(squares.sum() ** 2 / np.sum(squares**2 / np.array([len(a) - 1, len(b) - 1])))
    half = float(law.ppf(0.5 + confidence / 2)) * error
    return Comparison(
        test=name,
        mean_difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=float(2 * law.sf(abs(difference) / error)),
        n=min(len(a), len(b)),
        confidence=confidence,
    )


def wilcoxon_test(before: ArrayLike, after: ArrayLike) -> Comparison:
    """Apply Wilcoxon's signed-rank test of pairs, two-sided, leaving out pairs without a difference, as Wilcoxon did.

    Args:
        before: ``[n]`` errors before, one per run.
        after: ``[n]`` errors after, of the same runs in the same order.

    Returns:
        Mean difference and p value, which is that of all sign flips up to 13 pairs; no interval (NaN). Undefined if no
        pair differs.

    Raises:
        ConfigurationError: Fewer than two pairs, or different lengths.
        NonFiniteError: NaN or infinity among the errors.
    """
    a, b = _runs(before, after, paired=True)
    name, mean = "Wilcoxon signed-rank test", float((b - a).mean())
    # Errors are counts over a number of images: differences that are equal must tie, whatever rounding did to them.
    difference = np.round(b - a, 12)
    difference = difference[difference != 0]
    if len(difference) == 0:
        return _undefined(name, mean, len(a), 0.95)
    method = stats.PermutationMethod(n_resamples=np.inf) if len(difference) <= 13 else "approx"
    p_value = float(stats.wilcoxon(difference, method=method).pvalue) if len(difference) > 1 else 1.0
    nan = math.nan
    return Comparison(test=name, mean_difference=mean, low=nan, high=nan, p_value=p_value, n=len(a))


def mcnemar_test(before: ArrayLike, after: ArrayLike) -> Comparison:
    """Apply McNemar's exact test to one run before and after: of the examples that changed sides, did half go each way?

    ``p = min(1, 2 P[Binomial(b + c, 1/2) <= min(b, c)])``, with ``b`` examples wrong only before and ``c`` only after.
    It tells whether the two models differ on examples like these, not whether another run would.

    Args:
        before: ``[n]`` true where an example was classified wrongly before.
        after: ``[n]`` the same after, of the same examples in the same order.

    Returns:
        Mean difference of the errors and p value; no interval (NaN). p is 1 if no example changed sides.

    Raises:
        ConfigurationError: Different lengths, or none at all.
    """
    a, b = np.asarray(before, bool), np.asarray(after, bool)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ConfigurationError(
            f"mcnemar_test: expected the same examples before and after, at least 1, got shapes {a.shape} and {b.shape}"
        )
    mended, broken = int((a & ~b).sum()), int((b & ~a).sum())
    p_value = float(stats.binomtest(mended, mended + broken).pvalue) if mended + broken else 1.0
    nan, difference = math.nan, float(b.mean() - a.mean())
    test = "McNemar's exact test"
    return Comparison(
        test=test, mean_difference=difference, low=nan, high=nan, p_value=p_value, n=len(a), of="examples"
    )


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p values of several tests: reject where they are below the level, and any wrong rejection is that rare.

    ``adjusted_(i) = max_{k <= i} min(1, (m - k + 1) p_(k))`` for ``m`` p values in increasing order.

    Args:
        p_values: ``[m]``; NaN for a test that is undefined, which then does not count.

    Returns:
        ``[m]``, in the order given; NaN where NaN was.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def sign_flip_test(before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95) -> Comparison:
    """Apply the exact permutation test of pairs: the share of all sign flips whose mean is at least as far from 0.

    ``p = #{s in {-1, 1}^n : |mean(s d)| >= |mean(d)|} / 2^n`` with ``d = after - before``. The interval holds the
    values that the test would not reject: from the ``c``-th smallest to the ``c``-th largest mean of a subset of ``d``.

    Args:
        before: ``[n]`` errors before, one per run, ``2 <= n <= 16``.
        after: ``[n]`` errors after, of the same runs in the same order.
        confidence: Coverage of the interval, in ``(0, 1)``; the ends are infinite if ``n`` is too small for it.

    Raises:
        ConfigurationError: Fewer than two pairs or too many, or different lengths.
        NonFiniteError: NaN or infinity among the errors.
    """
    a, b = _runs(before, after, paired=True)
    n = len(a)
    if n > MOST_PAIRS:
        raise ConfigurationError(f"sign_flip_test: expected at most {MOST_PAIRS} pairs, got {n}; use paired_t_test")
    difference = b - a
    chosen = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    means = np.where(chosen, difference, -difference).mean(axis=1)
    slack = 1e-12 * np.abs(difference).max()  # sums in another order differ by rounding, and must count as equal
    p_value = float(np.mean(np.abs(means) >= abs(difference.mean()) - slack))
    subsets = chosen[chosen.any(axis=1)]
    typical = np.sort((subsets * difference).sum(axis=1) / subsets.sum(axis=1))
    left_out = math.floor((1 - confidence) / 2 * 2**n + 1e-9)
    low, high = (typical[left_out - 1], typical[-left_out]) if left_out else (-math.inf, math.inf)
    return Comparison(
        test="sign-flip test",
        mean_difference=float(difference.mean()),
        low=float(low),
        high=float(high),
        p_value=p_value,
        n=n,
        confidence=confidence,
    )


def _undefined(test: str, difference: float, n: int, confidence: float) -> Comparison:
    nan = math.nan
    return Comparison(test=test, mean_difference=difference, low=nan, high=nan, p_value=nan, n=n, confidence=confidence)


def _runs(before: ArrayLike, after: ArrayLike, *, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if a.ndim != 1 or b.ndim != 1 or min(len(a), len(b)) < 2 or (paired and len(a) != len(b)):
        wanted = "as many runs after as before, at least 2" if paired else "at least 2 runs before and after"
        raise ConfigurationError(f"significance: expected {wanted}, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise NonFiniteError(
            "significance: expected finite errors, got NaN or infinity; leave failed runs out of both groups"
        )
    return a, b
