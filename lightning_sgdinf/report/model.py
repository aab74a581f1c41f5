"""The contents of a report as one value; only a title and the scores are needed, every further field adds a section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.evaluation import CleansingCurve, Comparison, Detection
from lightning_sgdinf.ranking import Better
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.rendering import Rendered
from lightning_sgdinf.scores import Scores, reach


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """A prediction, and the training examples that brought it about.

    Attributes:
        title: What happened, e.g. ``"a 3, read as 5"``.
        example: The example that was predicted.
        causes: ``(training id, change of the query had it been left out)``, the most important first.
        query: What was explained, e.g. ``"loss of validation example 17"``.
        better: The good direction of that query.
    """

    title: str
    example: Example
    causes: tuple[tuple[int, float], ...]
    query: str
    better: Better = "lower"


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """A metric before and after cleansing, over several runs.

    Attributes:
        metric: Its name, e.g. ``"test error"``.
        before: One value per run.
        after: One value per run, in the same order.
        test: A test of the difference.
        better: The good direction of the metric.
        removed: How many examples were left out.
        percent: The values are shares, to be shown in percent.
        measured_on: Number of examples that it was measured on; ``None`` if not known. Shares are then told in
            examples, too.
        noun: The name of these in the plural, e.g. ``"test images"``.
        reason: Says why so many were left out, without a full stop.
    """

    metric: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    test: Comparison | None = None
    better: Better = "lower"
    removed: int | None = None
    percent: bool = True
    measured_on: int | None = None
    noun: str = "test examples"
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.before or not self.after:
            raise ConfigurationError(f"{self.metric}: expected at least one value before and one after")
        if self.measured_on is not None and self.measured_on < 1:
            raise ConfigurationError(f"{self.metric}: expected measured_on of at least 1, got {self.measured_on}")

    @property
    def means(self) -> tuple[float, float]:
        """Mean before and mean after."""
        return float(np.mean(self.before)), float(np.mean(self.after))

    @property
    def improved(self) -> bool:
        """True if the mean moved in the good direction."""
        before, after = self.means
        return after < before if self.better == "lower" else after > before

    @property
    def counts(self) -> tuple[float, float] | None:
        """Mean numbers of examples that the shares before and after are; ``None`` where that is not known."""
        if self.measured_on is None or not self.percent:
            return None
        before, after = (self.measured_on * mean for mean in self.means)
        return before, after

    @property
    def where(self) -> str:
        """Return what it was measured on, in words; empty if that is not known."""
        return "" if self.measured_on is None else f"{self.measured_on:,} {self.noun}"

    def show(self, value: float) -> str:
        """Format a value of the metric."""
        if not self.percent:
            return f"{value:.4g}"
        places = 1 if abs(value) >= 0.0995 else 2
        return f"{100 * value:.{places}f}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time or space that one part of the work took.

    Attributes:
        part: Its name.
        seconds: Wall time.
        size_bytes: Bytes on disk or in memory; the name says which.
    """

    part: str
    seconds: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report shows.

    Args:
        title: Head of the page.
        scores: The ranking the report is about, with its certificate and provenance.
        query: Which of its queries the report is about.
        headline: The result in one sentence; made from the other fields if empty.
        asked: What was asked, name to value: estimator, data set, model, log, ...
        command: The command line that made it.
        config: The configuration, as text.
        examples: Training examples to show, by id; others appear in tables only. A map-style data set is shown by the
            form of its items, see `Rendered`.
        shown: How many examples of each end to show.
        corrupt: Ids of training examples known to be corrupt.
        detections: How well each method found them, by name of the method; the report's own first.
        before_after: What cleansing changed.
        curves: Test error against the number of examples left out, one per method.
        explanations: Single predictions and what brought them about.
        costs: Times and bytes.
        warnings: What must be said first, besides the certificate's own warnings.
        compared: Other rankings of the same examples, by name of the method.
        single: Further scores whose queries are of one held-out example each.
        held_out: Held-out examples, by the name of the query that is about each.

    Raises:
        ConfigurationError: An unknown query, a shown count below 1, ids outside the training set, or scores of another
            number of examples.
    """

    title: str
    scores: Scores
    query: int | str = 0
    headline: str = ""
    asked: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    config: str = ""
    examples: Mapping[int, Example] = field(default_factory=dict)
    shown: int = 24
    corrupt: frozenset[int] | None = None
    detections: Mapping[str, Detection] = field(default_factory=dict)
    before_after: tuple[BeforeAfter, ...] = ()
    curves: tuple[CleansingCurve, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    costs: tuple[Cost, ...] = ()
    warnings: tuple[str, ...] = ()
    compared: Mapping[str, Scores] = field(default_factory=dict)
    single: Scores | None = None
    held_out: Mapping[str, Example] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scores.query_index(self.query)
        if not isinstance(self.examples, Mapping):
            object.__setattr__(self, "examples", Rendered(self.examples))
        if self.shown < 1:
            raise ConfigurationError(f"shown: expected at least 1, got {self.shown}")
        named = {*self.examples, *(self.corrupt or ()), *(i for e in self.explanations for i, _ in e.causes)}
        outside = sorted(i for i in named if not 0 <= i < len(self.scores))
        if outside:
            raise ConfigurationError(
                f"expected ids of training examples, 0 to {len(self.scores) - 1}, got {outside[:5]} in examples, "
                "corrupt or explanations"
            )
        others = {**self.compared, **({} if self.single is None else {"single": self.single})}
        for name, other in others.items():
            if len(other) != len(self.scores):
                raise ConfigurationError(
                    f"{name}: expected scores of the same {len(self.scores)} training examples, got {len(other)}"
                )

    @property
    def query_name(self) -> str:
        """Name of the query the report is about."""
        return self.scores.queries[self.scores.query_index(self.query)]

    @property
    def better(self) -> Better:
        """The good direction of that query."""
        return self.scores.better[self.scores.query_index(self.query)]

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """The certificate's warnings and the others."""
        certificate = self.scores.certificate
        return (*(certificate.warnings if certificate is not None else ()), *self.warnings)

    @cached_property
    def known_corrupt(self) -> frozenset[int]:
        """Ids of corrupt examples: as given, or those of the shown examples whose label is known to be wrong."""
        if self.corrupt is not None:
            return frozenset(self.corrupt)
        return frozenset(i for i, example in self.examples.items() if example.mislabelled)

    @property
    def method_name(self) -> str:
        """Name of the method that made the report's own scores, as far as it is known."""
        if self.detections or self.curves:
            return next(iter(self.detections), None) or self.curves[0].method
        repr_of = self.scores.provenance.get("estimator")
        return self.asked.get("estimator") or (str(repr_of).partition("(")[0] if repr_of else "") or "this ranking"


def method_label(data: ReportData, method: str) -> str:
    """Return a method's name with what it goes by, where that is not a predicted change: ``"loss (minus the training
    loss)"``."""
    scores = data.compared.get(method)
    if scores is None or scores.better[0] != "order" or scores.queries[0].startswith(method):
        return method
    return f"{method} ({scores.queries[0]})"


def said_of_trust(data: ReportData) -> tuple[str, ...]:
    """Return the sentences on true removals that belong beside every number, without the warnings."""
    return tuple(s for s in reach(data.scores, data.query) if s.removeprefix("Warning: ") not in data.all_warnings)


def collect_contributions(data: ReportData) -> np.ndarray | None:
    """Return the contribution of each epoch to the scores that a report is about, ``[E, N]``.

    ``None`` if that was not kept, or if there was one epoch, whose contribution is the score.
    """
    per_epoch = data.scores.per_epoch
    if per_epoch is None or len(per_epoch) < 2:
        return None
    return per_epoch[:, :, data.scores.query_index(data.query)].numpy()
