"""Test error without so many training examples, over several runs: what the papers' tables and figures are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_sgdinf.evaluation.significance import Comparison, holm, paired_t_test, wilcoxon_test
from lightning_sgdinf.extras import require

stats = require("scipy.stats", extra="report")


@dataclass(frozen=True, kw_only=True, eq=False)
class Removal:
    """The error of runs without ``count`` examples, beside that of the same runs with all of them.

    Attributes:
        count: Examples left out.
        before: ``[n]`` errors with none left out, one per run.
        after: ``[n]`` errors of the same runs in the same order.
        t_test: Of the differences; ``None`` for a single run.
        wilcoxon: Of the differences; ``None`` for a single run.
        t_adjusted: The t test's p value after Holm's correction over all counts of the method; NaN if undefined.
        wilcoxon_adjusted: The Wilcoxon test's.
    """

    count: int
    before: np.ndarray
    after: np.ndarray
    t_test: Comparison | None = None
    wilcoxon: Comparison | None = None
    t_adjusted: float = math.nan
    wilcoxon_adjusted: float = math.nan

    @property
    def runs(self) -> int:
        """Number ``n`` of runs."""
        return len(self.after)

    @property
    def mean(self) -> float:
        """Mean error without the examples."""
        return float(np.mean(self.after))

    @property
    def deviation(self) -> float:
        """Standard deviation over runs, of the sample; NaN for a single run."""
        return float(np.std(self.after, ddof=1)) if self.runs > 1 else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return Student's confidence interval of the mean; the mean itself for a single run."""
        if self.runs == 1:
            return self.mean, self.mean
        half = float(stats.t.ppf(0.5 + confidence / 2, self.runs - 1)) * self.deviation / math.sqrt(self.runs)
        return self.mean - half, self.mean + half


def compare_removals(
    before: Mapping[int, float], after: Mapping[int, Mapping[int, float]], *, correct_over: int | None = None
) -> list[Removal]:
    """Pair what there is and test it.

    Args:
        before: Error with none left out, by run.
        after: By number of examples left out, the error by run. Runs may be missing; those without a partner are
            skipped.
        correct_over: Correct for as many counts, if more were looked at than these.

    Returns:
        One `Removal` per count that any run has, increasing.
    """
    paired = []
    for count in sorted(after):
        runs = [run for run in sorted(after[count]) if run in before]
        if not runs:
            continue
        pair = np.array([before[run] for run in runs]), np.array([after[count][run] for run in runs])
        tests = (paired_t_test(*pair), wilcoxon_test(*pair)) if len(runs) > 1 else (None, None)
        paired.append((count, pair, tests))
    more = max(0, (correct_over or 0) - len(paired))
    adjusted = [
        holm([*(math.nan if tests[i] is None else tests[i].p_value for _, _, tests in paired), *[1.0] * more])
        for i in (0, 1)
    ]
    return [
        Removal(
            count=count,
            before=pair[0],
            after=pair[1],
            t_test=tests[0],
            wilcoxon=tests[1],
            t_adjusted=float(adjusted[0][number]),
            wilcoxon_adjusted=float(adjusted[1][number]),
        )
        for number, (count, pair, tests) in enumerate(paired)
    ]
