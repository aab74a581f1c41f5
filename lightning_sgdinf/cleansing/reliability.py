"""Reliability of a way to choose the number of examples: how often it helps and does harm, on untouched data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lightning_sgdinf.cleansing.base import CleansingContext, CleansingStrategy
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


class Outcome(Protocol):
    """Result of one choice: how many examples it changed, and the test error before and after."""

    @property
    def count(self) -> int:
        """Examples changed."""
        ...

    @property
    def before(self) -> float:
        """Test error with nothing changed."""
        ...

    @property
    def after(self) -> float:
        """Test error with the choice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOutcome:
    """Result of one strategy's choice.

    Attributes:
        selection: The choice.
        before: Test loss or error with nothing changed.
        after: Test loss or error with the choice.
    """

    selection: Selection
    before: float
    after: float

    @property
    def count(self) -> int:
        """Examples changed."""
        return len(self.selection)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Outcomes of one strategy over several runs.

    Attributes:
        runs: Their number.
        helped: In how many the test value fell.
        harmed: In how many it rose.
        abstained: In how many the strategy changed nothing.
        mean_change: Mean of after less before; negative is good.
        worst_change: The largest of these.
        mean_count: Mean number of examples changed.
    """

    runs: int
    helped: int
    harmed: int
    abstained: int
    mean_change: float
    worst_change: float
    mean_count: float


def choose_by_each(
    strategies: Mapping[str, CleansingStrategy],
    scores: Scores,
    context: CleansingContext,
    test: Callable[[Selection], float],
    query: int | str = 0,
) -> dict[str, StrategyOutcome]:
    """Let several strategies choose on one run, and see on test data what comes of each choice.

    With a context and ``test`` of one `RetrainingCache`, equal selections are trained once for all strategies together.

    Args:
        strategies: By name.
        scores: Of the run's training examples.
        context: What strategies may ask; nothing in it may see the test data.
        test: Test loss or error after training again with a selection.
        query: To go by.
    """
    before = test(Selection())
    outcomes = {}
    for name, strategy in strategies.items():
        selection = strategy.select(scores, context, query)
        outcomes[name] = StrategyOutcome(selection=selection, before=before, after=test(selection))
    return outcomes


def measure_reliability(runs: Iterable[Mapping[str, Outcome]]) -> dict[str, Reliability]:
    """Count how often each strategy helped or harmed.

    Args:
        runs: The outcomes of each run (of another seed, say) by name of the strategy, e.g. of `choose_by_each`; a
            strategy may be missing in some.

    Raises:
        ConfigurationError: There are no outcomes.
        NonFiniteError: A test value is NaN or infinite; names the strategy.
    """
    by_name: dict[str, list[Outcome]] = {}
    for run in runs:
        for name, outcome in run.items():
            by_name.setdefault(name, []).append(outcome)
    if not by_name:
        raise ConfigurationError("measure_reliability: expected the outcomes of one run or more, got none")
    return {name: _reliability(name, outcomes) for name, outcomes in by_name.items()}


def _reliability(name: str, outcomes: list[Outcome]) -> Reliability:
    changes = np.array([outcome.after - outcome.before for outcome in outcomes], np.float64)
    if not np.isfinite(changes).all():
        raise NonFiniteError(f"measure_reliability: a test value of {name!r} is not finite; leave failed runs out")
    counts = np.array([outcome.count for outcome in outcomes])
    return Reliability(
        runs=len(outcomes),
        helped=int((changes < 0).sum()),
        harmed=int((changes > 0).sum()),
        abstained=int((counts == 0).sum()),
        mean_change=float(changes.mean()),
        worst_change=float(changes.max()),
        mean_count=float(counts.mean()),
    )
