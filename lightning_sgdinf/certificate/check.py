"""A check: one comparison that could have contradicted the scores, with all that a reader must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ROUNDING = {"float64": 1e-6, "float32": 1e-3}
"""Largest relative difference that a reader may put down to rounding, by precision; 1e-2 in coarser ones."""

Outcome = Literal["equal", "rounding", "near", "failed"]
"""Of a check: equal bit for bit; apart by no more than rounding; apart by more, but not by an error; wrong."""

_READINGS: Mapping[Outcome, str] = {
    "equal": "equal to the last digit",
    "rounding": "rounding",
    "near": "more than rounding as a rule makes, less than an error",
    "failed": "an error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A comparison that could have contradicted the scores.

    Attributes:
        name: What it is called, e.g. ``"gradient check"``.
        compared: What was compared with what.
        where: At which steps, of which examples.
        precision: What the other side was computed in, e.g. ``"float64"``.
        deviation: Largest difference, at least 0; 0 is equal bit for bit.
        unit: What the difference is a part of, e.g. ``"of what the step moved"``.
        tolerance: Largest difference that is not an error.
        rounding: Largest difference that rounding alone makes.
        remark: A further sentence, or nothing.
    """

    name: str
    compared: str
    where: str
    precision: str
    deviation: float
    unit: str
    tolerance: float
    rounding: float
    remark: str = ""

    @property
    def outcome(self) -> Outcome:
        """Return how it came out; NaN fails."""
        if self.deviation == 0:
            return "equal"
        if self.deviation <= min(self.rounding, self.tolerance):
            return "rounding"
        return "near" if self.deviation <= self.tolerance else "failed"

    def sentence(self) -> str:
        """Return all of it in words that need no knowledge of the method."""
        verdict = "failed" if self.outcome == "failed" else "passed"
        measured = "" if self.outcome == "equal" else f"largest difference {self.deviation:.1e} {self.unit}: "
        remark = f" {self.remark}" if self.remark else ""
        return (
            f"{self.name[:1].upper()}{self.name[1:]} {verdict}: {self.compared}; {self.where}, in {self.precision}; "
            f"{measured}{_READINGS[self.outcome]} (an error above {self.tolerance:.0e}).{remark}"
        )


def rounding_in(precision: str) -> float:
    """Return the largest relative difference that may be put down to rounding in a precision."""
    return ROUNDING.get(precision, 1e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReplay:
    """Rebuilt states against recorded ones.

    Attributes:
        steps: Number of steps that were re-run and compared.
        bitwise: Number of them that matched bit for bit.
        largest_deviation: Largest ``max|rebuilt - recorded| / max|recorded step|`` over tensors and steps,
            dimensionless; 0 is bitwise.
        step: The step of the largest deviation, or -1.
        tensor: Its tensor.
        tolerance: Largest value that is not an error.
        precision: What the steps were re-run in; empty if not known.
        of: Number of steps of the run; 0 if not known.
    """

    steps: int
    bitwise: int
    largest_deviation: float
    step: int = -1
    tensor: str = ""
    tolerance: float = 0.0
    precision: str = ""
    of: int = 0

    def as_check(self) -> Check:
        """Return the comparison in the form that all checks have."""
        count = f"all {self.steps} steps" if self.steps == self.of else f"{self.steps} steps"
        if self.of > self.steps:
            count = f"{self.steps} of {self.of} steps"
        return Check(
            name="step replay",
            compared="the state that each step, taken again, leads to against the recorded one",
            where=count if self.bitwise == self.steps else f"{count}, {self.bitwise} of them equal to the last digit",
            precision=self.precision or "the precision of the run",
            deviation=self.largest_deviation,
            unit=f"of what the step moved (step {self.step}, {self.tensor})"
            if self.tensor
            else "of what the step moved",
            tolerance=self.tolerance or 1e-2,
            rounding=rounding_in(self.precision),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheck:
    """The walk's scores of sampled examples against central differences of a re-run.

    Attributes:
        first_step: First step of the window, which ends with the run.
        example_ids: Those whose weights were moved one at a time; empty where all were moved at once.
        predicted: The walk's scores of the window, per example or summed along a direction, in units of the query.
        measured: ``-(q(1 + eps d) - q(1 - eps d)) / (2 eps)`` of the re-run, same units.
        relative_error: ``max|predicted - measured|`` over the norm of the scores, or over the largest of both.
        tolerance: Largest value that is not an error.
        examples: Number of examples whose weights were moved at once, each at random up or down.
        precision: What the re-run was computed in; empty if not known.
        of: Number of steps of the run; 0 if not known.
    """

    first_step: int
    example_ids: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    relative_error: float
    tolerance: float
    examples: int = 0
    precision: str = ""
    of: int = 0

    def as_check(self) -> Check:
        """Return the comparison in the form that all checks have."""
        count = self.examples or len(self.example_ids)
        last = f"the last {self.of - self.first_step} of {self.of} steps" if self.of else f"steps {self.first_step} on"
        whole = self.of and self.first_step == 0
        return Check(
            name="gradient check",
            compared="the scores against central differences of training again with other example weights",
            where=f"{count} example{'s' * (count != 1)}, {f'all {self.of} steps' if whole else last}",
            precision=self.precision or "the precision of the run",
            deviation=self.relative_error,
            unit="of the scores' norm",
            tolerance=self.tolerance,
            rounding=rounding_in("float32" if self.tolerance > 1e-2 else "float64"),
        )
