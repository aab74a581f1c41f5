"""Rankings by a baseline, which asks no query."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sgdinf.baselines import Baseline
from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.scoring.result import JobResult


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineJob:
    """A ranking of one run's examples by a `Baseline`.

    Attributes:
        run: Record, model and data.
        baseline: How to rank.
    """

    run: OpenedRun
    baseline: Baseline

    def result(self) -> JobResult:
        """Rank the examples, with a note that nothing is predicted."""
        title = self.baseline.title
        return JobResult(
            values=self.baseline.rank(self.run)[:, None],
            queries=(title,),
            better=("order",),
            certificate=Certificate(level="off", notes=(f"{title}: a ranking only, not a predicted change.",)),
            provenance={"estimator": repr(self.baseline)},
        )
