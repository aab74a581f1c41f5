"""Ways to say which training examples caused failures: each ranks them all, and selects some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.cleansing import combined
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import MeanLoss, Query
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring import Settings, job_for
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.repair import Failures

QUIET = Settings(certificate="off", progress=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class CauseContext:
    """Evidence that a cause may look at; no test data, and of validation data only what failures may be asked about.

    Attributes:
        run: The recorded run.
        failures: Halves of the validation set.
        wrong: The truth, bool ``[N]``, for `KnownCorrupt` alone.
        count: How many examples to select.
        others: Gives the ranking of another cause by its name.
        seed: Of what is drawn.
    """

    run: OpenedRun
    failures: Failures
    wrong: Tensor
    count: int
    others: Callable[[str], Scores]
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspects:
    """A ranking and a selection.

    Attributes:
        scores: Of all examples; the most harmful first.
        selection: What to treat.
    """

    scores: Scores
    selection: Selection


class Cause(Protocol):
    """Finds causes. A frozen value."""

    def find(self, context: CauseContext) -> Suspects:
        """Return ranking and selection."""
        ...


def top(scores: Scores, context: CauseContext, reason: str = "") -> Suspects:
    """Return a ranking with its most harmful examples as the selection."""
    ids = tuple(scores.order()[: context.count].tolist())
    return Suspects(scores=scores, selection=Selection(drop=ids, reason=reason or f"the {len(ids)} most harmful"))


@dataclass(frozen=True)
class BlamedBy:
    """Examples that an estimator blames for failures, or for the loss of the whole half that may be asked about.

    Attributes:
        estimator: Any that answers a query.
        asked: Whose mean loss is the query: of the failures, of the whole half, or of the whole validation set, which
            leaves no half to judge by: held-out failures are then not counted.
    """

    estimator: Any
    asked: Literal["failures", "half", "validation"] = "failures"

    def find(self, context: CauseContext) -> Suspects:
        """Ask; see `Cause.find`."""
        queries: Mapping[str, Query] = {
            "failures": context.failures.query,
            "half": context.failures.whole_half,
            "validation": MeanLoss(),
        }
        query = BoundQuery.of(context.run, queries[self.asked])
        result = job_for(self.estimator, QUIET, context.run, lambda: query).result()
        return top(Scores(values=result.values, queries=result.queries, better=result.better), context)


@dataclass(frozen=True)
class RankedBy:
    """Examples that a baseline ranks first.

    Attributes:
        baseline: A ranking, or a partial one that is given ``failures=``.
        own_number: Select those whose value is below 0, as many as these are, in place of the asked number.
    """

    baseline: Any
    own_number: bool = False

    def find(self, context: CauseContext) -> Suspects:
        """Rank; see `Cause.find`."""
        baseline = self.baseline
        if isinstance(baseline, partial):
            baseline = baseline(failures=context.failures)
        values = baseline.rank(context.run)
        scores = Scores(values=values[:, None], queries=(baseline.title,), better=("order",))
        if self.own_number:
            number = min(int((values < 0).sum()), context.run.examples - 1)
            return top(scores, replace(context, count=max(number, 1)), "its own number")
        return top(scores, context)


@dataclass(frozen=True)
class CombinedCauses:
    """Examples that one cause calls harmful, in the order of another; see `lightning_sgdinf.cleansing.combined`.

    Attributes:
        first: Name of the cause that decides who comes first.
        then: Name of the cause that orders.
    """

    first: str
    then: str

    def find(self, context: CauseContext) -> Suspects:
        """Combine; see `Cause.find`."""
        return top(combined(context.others(self.first), context.others(self.then)), context)


@dataclass(frozen=True)
class KnownCorrupt:
    """The examples that are really wrong, in random order: what identification could reach at best."""

    def find(self, context: CauseContext) -> Suspects:
        """Tell; see `Cause.find`.

        Raises:
            ConfigurationError: Nothing is wrong in the training set, as where a group is missing from it.
        """
        if not bool(context.wrong.any()):
            raise ConfigurationError(
                "KnownCorrupt: expected training examples that are wrong, got none: what is missing cannot be left out"
            )
        generator = torch.Generator().manual_seed(context.seed)
        values = torch.rand(len(context.wrong), generator=generator, dtype=torch.float64) - context.wrong.double()
        scores = Scores(values=values[:, None] - 1, queries=("known to be wrong",), better=("order",))
        number = min(context.count, int(context.wrong.sum()))
        return top(scores, replace(context, count=number))


def sees_all_validation_data(causes: Mapping[str, Cause], name: str) -> bool:
    """Return whether a cause looks at the half of the validation set that a repair is judged by, too."""
    cause = causes[name]
    if isinstance(cause, CombinedCauses):
        return any(sees_all_validation_data(causes, other) for other in (cause.first, cause.then))
    return isinstance(cause, BlamedBy) and cause.asked == "validation"


def with_components(causes: Mapping[str, Cause], names: Sequence[str]) -> list[str]:
    """Return names of causes and of those that they are combined from, each once."""
    parts = [(cause.first, cause.then) for cause in map(causes.__getitem__, names) if isinstance(cause, CombinedCauses)]
    inner = [name for pair in parts for name in pair]
    return list(dict.fromkeys([*names, *(with_components(causes, inner) if inner else ())]))


@dataclass(frozen=True)
class Proposed:
    """A selection that a search over replays proposes, with drops and new labels and of its own size.

    Attributes:
        search: See `lightning_sgdinf.cleansing.IteratedMargins`.
    """

    search: Any = field(default=None)

    def find(self, context: CauseContext) -> Suspects:
        """Search; see `Cause.find`."""
        result = self.search.search(context.run, context.failures)
        return Suspects(scores=result.scores, selection=result.selection)
