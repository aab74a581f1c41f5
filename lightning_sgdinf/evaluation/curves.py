"""Test error against the number of training examples left out: the curve by which cleansing methods are compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.extras import require

stats = require("scipy.stats", extra="report")


@dataclass(frozen=True, kw_only=True, eq=False)
class CleansingCurve:
    """Test error of a method's removals, over several runs.

    Args:
        method: Its name.
        counts: ``[M]`` numbers of examples left out, increasing; 0 is the model before.
        errors: ``[S, M]``: test error of run ``s`` without ``counts[m]`` examples; one run may be given as ``[M]``.
        metric: What the errors are, for the axis.
        percent: The errors are shares, to be shown in percent.
        chosen: The number that was chosen without looking at these errors, 0 or more, and the mean error there;
            ``None`` if none was. It need not be one of ``counts``.

    Raises:
        ConfigurationError: Shapes that do not fit, or counts that do not increase from 0 or more.
        NonFiniteError: NaN or infinity among the errors.
    """

    method: str
    counts: tuple[int, ...]
    errors: ArrayLike
    metric: str = "test error"
    percent: bool = True
    chosen: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        counts = tuple(int(count) for count in self.counts)
        errors = np.atleast_2d(np.array(self.errors, np.float64))
        if not counts or counts[0] < 0 or any(b <= a for a, b in pairwise(counts)):
            raise ConfigurationError(f"counts of {self.method!r}: expected increasing numbers from 0 on, got {counts}")
        if errors.ndim != 2 or errors.shape[1] != len(counts) or errors.shape[0] == 0:
            raise ConfigurationError(
                f"errors of {self.method!r}: expected shape [runs, {len(counts)}], got {list(errors.shape)}"
            )
        if self.chosen is not None and (self.chosen[0] < 0 or not np.isfinite(self.chosen[1])):
            raise ConfigurationError(
                f"chosen of {self.method!r}: expected a number of examples and a finite error, got {self.chosen}"
            )
        if not np.isfinite(errors).all():
            run, column = np.argwhere(~np.isfinite(errors))[0].tolist()
            raise NonFiniteError(
                f"errors of {self.method!r}: run {run} without {counts[column]} examples is not finite"
            )
        errors.setflags(write=False)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "errors", errors)

    @property
    def runs(self) -> int:
        """Number ``S`` of runs."""
        return int(np.shape(self.errors)[0])

    @property
    def mean(self) -> np.ndarray:
        """``[M]`` mean error over the runs."""
        return np.mean(np.asarray(self.errors), axis=0)

    def interval(self, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return Student's confidence interval of the mean at each count.

        Args:
            confidence: Coverage, in ``(0, 1)``.

        Returns:
            Lower and upper ends, ``[M]`` each; equal to the mean if there is only one run.
        """
        if self.runs == 1:
            return self.mean, self.mean
        spread = np.std(np.asarray(self.errors), axis=0, ddof=1) / np.sqrt(self.runs)
        half = stats.t.ppf(0.5 + confidence / 2, self.runs - 1) * spread
        return self.mean - half, self.mean + half

    def best(self) -> tuple[int, float]:
        """Return the count with the lowest mean error, and that error; the smaller count among equals.

        It was chosen by looking at the errors, so its error is optimistic: choose on validation, report on test.
        """
        column = int(np.argmin(self.mean))
        return self.counts[column], float(self.mean[column])
