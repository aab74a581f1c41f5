r"""Agreement of predicted and true removals over all examples, from a few that were really left out.

The predicted changes :math:`p_j` of all :math:`N` examples are known, the true ones :math:`m_j` of a sample only. A
sample of extremes correlates better than all examples do, one at random hardly meets the examples that matter. So the
sample holds both extremes and others in proportion to their distance from the mean, and what was not measured is filled
in by a model of what was, as often as is needed for an interval:

.. math:: m_j = a + b p_j + \sigma s_j^\gamma \varepsilon_j, \qquad s_j = |p_j - \bar p| / \mathrm{sd}(p) + \kappa,

with flat priors of :math:`a, b, \log\sigma`, the exponents :math:`\gamma \in \{0, ½, 1\}` weighted by their likelihood
(do small scores miss by as much as large ones?), and heavy tails. Each time, the correlation of all :math:`N` pairs is
taken; its median and the middle 95 % are the result (multiple imputation of a finite population; Rubin 1987).
Calibrated against runs with all examples left out: docs/results/certificate.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

DRAWS = 1000
"""Times that what was not measured is filled in."""
FILLED = 1000
"""Examples that are filled in; of more, every so many-th in the order of their scores."""
EXPONENTS = (0.0, 0.5, 1.0)
BASE = 0.3
"""Size of an average example's error, where that of one a standard deviation away is 1.3."""
TAIL = 3.0
"""Degrees of freedom of the errors."""
CAUTION = 0.5
"""Part of the sample's degrees of freedom that its variance is worth: errors with heavy tails are rarely seen."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of predicted and true changes over all examples.

    Attributes:
        correlation: Pearson correlation in ``[-1, 1]``; NaN if one side does not vary.
        low: Lower end of the interval that holds it with 95 %.
        high: Upper end.
        slope: True change per predicted change; 1 if the scores have the right size.
        right_signs: Share of the measured examples whose true change has the predicted sign, in ``[0, 1]``.
    """

    correlation: float
    low: float
    high: float
    slope: float
    right_signs: float


def spread_sample(scores: Tensor, ids: Tensor, count: int, seed: int = 0) -> list[int]:
    """Draw examples over the range of scores: both extremes, and others by their distance from the mean.

    Args:
        scores: Of all examples, ``[N]``.
        ids: Those to draw from.
        count: Number of examples, at least 2; all if there are no more.
        seed: Of the choice.

    Returns:
        Ids, increasing.
    """
    if count >= len(ids):
        return sorted(ids.tolist())
    values, random = scores[ids].double().numpy(), np.random.default_rng(seed)
    order = np.argsort(values, kind="stable")
    size = np.abs(values - values.mean()) + 0.5 * values.std() + np.finfo(float).tiny
    chosen, rest, left = [int(order[0]), int(order[-1])], order[1:-1], count - 2
    while left and len(large := rest[left * size[rest] >= size[rest].sum()]):  # drawn for certain
        large = large[np.argsort(-size[large], kind="stable")][:left]
        chosen += large.tolist()
        rest, left = rest[~np.isin(rest, large)], left - len(large)
    if left:
        steps = np.cumsum(size[rest])
        places = np.searchsorted(steps, (np.arange(left) + random.random()) * steps[-1] / left)
        chosen += rest[np.minimum(places, len(rest) - 1)].tolist()
    return sorted(ids[sorted(set(chosen))].tolist())


def agreement(scores: Tensor, ids: Sequence[int], measured: Sequence[float], seed: int = 0) -> Agreement:
    """Estimate how well the scores of all examples agree with their true changes.

    Args:
        scores: Predicted changes of all examples of the population, ``[N]``.
        ids: Those that were measured, at least 3.
        measured: Their true changes.
        seed: Of the random draws.
    """
    p, m = scores.double().numpy(), np.asarray(measured)
    known = np.asarray(ids)
    told = p[known] != 0
    right = float(np.mean(np.sign(p[known][told]) == np.sign(m[told]))) if told.any() else math.nan
    x = p - p.mean()
    spread = x.std()
    if not spread > 0 or not m.std() > 0:
        return Agreement(math.nan, -1.0, 1.0, math.nan, right)
    x = x / spread
    if len(known) == len(p):
        full = np.empty(len(p))
        full[known] = m
        correlation = float(np.corrcoef(x, full)[0, 1])
        return Agreement(correlation, correlation, correlation, correlation * float(full.std() / spread), right)
    draws, slope = _draws(x, known, m, np.random.default_rng(seed))
    low, middle, high = np.quantile(draws, (0.025, 0.5, 0.975)).tolist()
    return Agreement(middle, low, high, slope / float(spread), right)


def _draws(x: np.ndarray, known: np.ndarray, m: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return correlations of the filled-in population, ``[DRAWS]``, and the slope in units of ``m`` over ``x``."""
    rest = np.setdiff1d(np.argsort(x, kind="stable"), known, assume_unique=True)
    stands_for = max(1.0, len(rest) / FILLED)
    rest = rest[(np.arange(min(len(rest), FILLED)) * stands_for).astype(int)]
    weight = np.concatenate([np.ones(len(known)), np.full(len(rest), stands_for)])
    freedom = max(1.0, CAUTION * (len(known) - 2))
    fits = [_Fit.of(x, known, m, exponent) for exponent in EXPONENTS]
    likelihood = np.array([fit.log_likelihood for fit in fits])
    share = np.exp(likelihood - likelihood.max())
    share /= share.sum()
    counts = random.multinomial(DRAWS, share)
    correlations = []
    for fit, count in zip(fits, counts, strict=True):
        sigma = np.sqrt(fit.variance * freedom / random.chisquare(freedom, count))[:, None]
        line = fit.line + sigma * (random.standard_normal((count, 2)) @ fit.root.T)
        errors = random.standard_t(TAIL, (count, len(rest))) * math.sqrt((TAIL - 2) / TAIL)
        filled = line[:, :1] + line[:, 1:] * x[rest] + sigma * fit.size[rest] * errors
        full = np.concatenate([np.broadcast_to(m, (count, len(m))), filled], axis=1)
        correlations.append(_correlations(x[np.concatenate([known, rest])], full, weight))
    return np.concatenate(correlations), float(sum(s * fit.line[1] for s, fit in zip(share, fits, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A line through the measured examples, errors of size ``(|x| + BASE) ** exponent``."""

    size: np.ndarray
    line: np.ndarray
    root: np.ndarray  # of the line's covariance over the variance
    variance: float
    log_likelihood: float

    @classmethod
    def of(cls, x: np.ndarray, known: np.ndarray, m: np.ndarray, exponent: float) -> _Fit:
        size = (np.abs(x) + BASE) ** exponent
        design = np.stack([np.ones(len(known)), x[known]], axis=1) / size[known][:, None]
        covariance = np.linalg.pinv(design.T @ design)
        line = covariance @ design.T @ (m / size[known])
        freedom = max(1, len(known) - 2)
        squares = float(np.square(m / size[known] - design @ line).sum()) + 1e-18 * float(np.square(m).sum())
        likelihood = (
            0.5 * np.linalg.slogdet(covariance)[1] - np.log(size[known]).sum() - freedom / 2 * math.log(squares)
        )
        eigenvalues, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
        return cls(size, line, root, squares / freedom, float(likelihood))


def _correlations(x: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted correlation of ``x`` with each row."""
    weight = weight / weight.sum()
    x, rows = x - weight @ x, rows - (rows @ weight)[:, None]
    return (rows * weight) @ x / np.sqrt((weight @ x**2) * (rows**2 @ weight))
