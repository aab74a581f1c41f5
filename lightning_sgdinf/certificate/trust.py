"""Trust: what leaving examples out really does, against what was predicted, and how far that reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass

CERTAIN = 0.07
"""Half a width of an interval up to which a correlation is said as a figure: docs/results/certificate.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The outcome of leaving examples out of the last steps only.

    Attributes:
        steps: Number of those steps.
        correlation: Pearson correlation of predicted and true changes.
        left_out: Number of examples that were left out.
    """

    steps: int
    correlation: float
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Predicted against true changes, for examples that were really left out.

    Attributes:
        first_step: Step from which they were left out, to the end of the run.
        example_ids: Those that were left out.
        predicted: The walk's scores of these steps, in units of the query.
        measured: ``q(without the example) - q(with it)`` of the re-run.
        correlation: Pearson correlation over all examples of these steps, in ``[-1, 1]``, estimated from those that
            were left out; NaN if nothing changes.
        low: Lower end of the interval that holds it with 95 %.
        high: Upper end.
        slope: True change per predicted change, 1 where the scores have the right size; ``None`` if not known.
        right_signs: Share of those left out whose true change has the predicted sign; ``None`` if not known.
        population: Number of examples that the correlation is about; 0 if not known.
        reach: First step that the scores are about: 0, but for estimates of the last epochs.
        steps: Number of steps of the run; 0 if not known.
        query: Name of the query.
        seconds: Wall time it took.
        needed_seconds: Forecast of what six examples left out of the whole run would have taken, where that was too
            dear; else 0.
        at_once: Number of models trained at once; 1 if one after another.
        memory_bytes: About what these needed.
        shorter: What windows that are shorter say.
    """

    first_step: int
    example_ids: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    correlation: float
    low: float
    high: float
    slope: float | None = None
    right_signs: float | None = None
    population: int = 0
    reach: int = 0
    steps: int = 0
    query: str = ""
    seconds: float = 0.0
    needed_seconds: float = 0.0
    at_once: int = 1
    memory_bytes: int = 0
    shorter: tuple[Window, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Return true if they were left out of everything that the scores are about."""
        return self.first_step <= self.reach

    @property
    def headline(self) -> float | None:
        """Return the figure to put in front: the correlation over all examples of the whole run.

        ``None`` where that is not known: a window of the last steps says nothing of earlier ones, an interval of more
        than 0.07 to a side no figure.
        """
        near = max(self.high - self.correlation, self.correlation - self.low) <= CERTAIN
        return self.correlation if near and self.is_whole and self.population else None

    @property
    def is_low(self) -> bool:
        """Return whether a reader should be warned: correlation below 0.9, where there is something to correlate."""
        return not self.correlation >= 0.9 and not _is_nothing(self.slope)

    @property
    def where(self) -> str:
        """Return the steps in words."""
        if not self.steps:
            return "the whole run" if self.first_step == 0 else f"the steps from {self.first_step} on"
        last = f"the last {self.steps - self.first_step} of {self.steps} steps"
        if self.first_step == 0:
            return f"the whole run ({self.steps} steps)"
        return f"{last}, all that these scores are about" if self.is_whole else last

    def sentence(self) -> str:
        """Return what can be said and of what, in one sentence; it belongs beside every number."""
        count = len(self.example_ids)
        left_out = f"{count} examples" if count < self.population or not self.population else f"all {count} examples"
        if self.headline is not None:
            interval = "" if self.low == self.high else f" (95 % interval {self.low:.2f} to {self.high:.2f})"
            return (
                f"Trust {self.correlation:.2f}{interval}: predicted and true changes over all {self.population} "
                f"examples, by {left_out} really left out of {self.where}{self._details()}."
            )
        if self.is_whole:
            return (
                f"Trust is not known well: predicted and true changes correlate between {self.low:.2f} and "
                f"{self.high:.2f} (95 % interval), by {left_out} really left out of {self.where}{self._details()}."
            )
        shorter = "".join(f"; of the last {w.steps} steps, {w.correlation:.2f}" for w in self.shorter)
        return (
            f"Trust in the whole run is not known: {left_out} left out of {self.where} change as predicted with "
            f"correlation {self.correlation:.2f} ({self.low:.2f} to {self.high:.2f}){shorter}{self._details()}. What "
            "leaving out earlier does may be less well predicted."
        )

    def cost(self) -> str:
        """Return what it took, in one sentence."""
        if not self.seconds:
            return ""
        ways = f"{self.at_once} models at once" if self.at_once > 1 else "one model after another"
        dear = f"; six examples left out of the whole run would take {self.needed_seconds:.2g} s" * (
            self.needed_seconds > 0
        )
        return f"Leaving out took {self.seconds:.2g} s and about {max(1, self.memory_bytes >> 20)} MiB, {ways}{dear}."

    def _details(self) -> str:
        if _is_nothing(self.slope):
            return "; nothing was predicted to change, or nothing did"
        slope = "" if self.slope is None else f"; true change per predicted {self.slope:.2g}"
        signs = "" if self.right_signs is None else f", {100 * self.right_signs:.0f} % of signs right"
        return slope + signs


def _is_nothing(slope: float | None) -> bool:
    """Return true for a true change per predicted that is none: nothing was predicted to change, or nothing did."""
    return slope is not None and not math.isfinite(slope)
