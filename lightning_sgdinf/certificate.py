"""The checks of a result, and how well it held.

Every check that can contradict the scores is one `Check`: what was compared, by a road that shares nothing with the
walk, at which steps, in which precision, with which tolerance, and how it came out. *Step replay*: every recorded step,
re-run, must lead to the next recorded state. *Gradient check*: the walk's score of a few sampled examples against
central differences of a real re-run with their weights at ``1 +- eps``. *Trust*: a few sampled examples really left out
and the run taken again, because even an exact derivative stops predicting removal where training is not smooth.

In a `fast` certificate the last two run on a window of the last steps only (from the recorded state at its start), with
the walk's partial scores for that window; in a `full` one on the whole run. What a window of the last steps cannot
show is measured along the whole walk, at no cost: *amplification*, how much more a change early in the run weighs than
one at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_sgdinf.errors import ConfigurationError

Level = Literal["fast", "full", "off"]
AMPLIFIES = 2.0
"""Factor of amplification above which removal is often not what the derivative says: docs/results/lds.md."""


ROUNDING = {"float64": 1e-6, "float32": 1e-3}
"""Largest relative difference that a reader may put down to rounding, by precision; 1e-2 in coarser ones."""

Outcome = Literal["equal", "rounding", "near", "failed"]
"""Of a check: equal bit for bit; apart by no more than rounding; apart by more, but not by an error; wrong."""

_READINGS: Mapping[Outcome, str] = {
    "equal": "equal bit for bit",
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
            where=f"{count}, {self.bitwise} of them bit for bit",
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
        example_ids: The sampled examples.
        predicted: The walk's scores of the window, per example, in units of the query.
        measured: ``-(q(1 + eps) - q(1 - eps)) / (2 eps)`` of the re-run, same units.
        relative_error: ``max|predicted - measured| / max|measured|``.
        tolerance: Largest value that is not an error.
        precision: What the re-run was computed in; empty if not known.
        of: Number of steps of the run; 0 if not known.
    """

    first_step: int
    example_ids: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    relative_error: float
    tolerance: float
    precision: str = ""
    of: int = 0

    def as_check(self) -> Check:
        """Return the comparison in the form that all checks have."""
        count = len(self.example_ids)
        last = f"the last {self.of - self.first_step} of {self.of} steps" if self.of else f"steps {self.first_step} on"
        whole = self.of and self.first_step == 0
        return Check(
            name="gradient check",
            compared="the scores of the walk against central differences of training again with other example weights",
            where=f"{count} example{'s' * (count != 1)}, {f'all {self.of} steps' if whole else last}",
            precision=self.precision or "the precision of the run",
            deviation=self.relative_error,
            unit="of the largest score among them",
            tolerance=self.tolerance,
            rounding=rounding_in("float32" if self.tolerance > 1e-2 else "float64"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Predicted against true change for examples that were really left out.

    Attributes:
        first_step: First step of the window, which ends with the run.
        example_ids: The sampled examples.
        predicted: The walk's scores of the window, in units of the query.
        measured: ``q(without the example) - q(with it)`` of the re-run.
        correlation: Pearson correlation, in ``[-1, 1]``.
        low: Lower end of its 95 % interval (Fisher's z).
        high: Upper end.
    """

    first_step: int
    example_ids: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    correlation: float
    low: float
    high: float

    @property
    def is_low(self) -> bool:
        """Return whether a reader should be warned: correlation below 0.9."""
        return not self.correlation >= 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Amplification:
    r"""The weight of a small change of the parameters early in the run, relative to one at its end.

    Attributes:
        factor: Median over queries of :math:`\max_t \lVert u_t\rVert / \lVert u_T\rVert`, with :math:`u_t` the
            derivative of the query in the parameters before step ``t``; dimensionless, at least 1.
        step: Step at which the query nearest to that median has its largest.
        first_step: First step that the walk visited.
    """

    factor: float
    step: int
    first_step: int

    @property
    def is_high(self) -> bool:
        """Return whether a reader should be warned: a factor above 2."""
        return self.factor > AMPLIFIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The checks that a result carries.

    Attributes:
        level: ``"fast"``, ``"full"`` or ``"off"``.
        step_replay: See `StepReplay`; ``None`` if not checked.
        gradient_check: See `GradientCheck`; ``None`` if not checked (estimators that are not a derivative of the run
            have none).
        trust: See `Trust`; ``None`` if not checked.
        amplification: See `Amplification`; ``None`` for estimators that are not the derivative of the run.
        further: Checks besides these.
        seconds: Wall time the checks took.
        notes: Sentences a reader must know, e.g. what was treated as constant.
    """

    level: Level
    step_replay: StepReplay | None = None
    gradient_check: GradientCheck | None = None
    trust: Trust | None = None
    amplification: Amplification | None = None
    further: tuple[Check, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def checks(self) -> tuple[Check, ...]:
        """Return every check that was done, in one form."""
        own = (part.as_check() for part in (self.step_replay, self.gradient_check) if part is not None)
        return (*own, *self.further)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the warnings for the top of a report; empty if all is well."""
        warnings: list[str] = []
        if self.level == "off":
            warnings.append("Nothing was checked (certificate='off').")
        if (g := self.gradient_check) is not None and g.relative_error > 1e-2:
            warnings.append(
                f"Walk and central differences are {g.relative_error:.0%} apart. In float32 that may "
                "be rounding in parameters without a gradient (a bias before BatchNorm under Adam); train and walk in "
                "float64 to tell that from an operation without a right second derivative."
            )
        if (t := self.trust) is not None and t.is_low:
            warnings.append(
                f"Low trust: for {len(t.example_ids)} examples really left out, predicted and true changes "
                f"correlate only at {t.correlation:.2f} (95 % interval {t.low:.2f} to {t.high:.2f}). The scores "
                "are the right derivative, but training is not smooth enough for it to predict removal; smaller steps "
                "or smoother activations help, and the largest scores should be verified by re-training."
            )
        if (a := self.amplification) is not None and a.is_high and (t is None or t.first_step > a.first_step):
            warnings.append(
                f"This run amplifies small changes: one before step {a.step} weighs {a.factor:.1f} times what it "
                "weighs at the end. The scores are the right derivative, but really leaving an example out often does "
                "something else in such a run, which a window of the last steps does not show. Measure trust on the "
                "whole run (certificate='full'), verify the extremes by real runs (refine), or rank by the damped "
                "walk, SgdInfluence(curvature_scale=0.3)."
            )
        return tuple(warnings)

    def summary(self) -> tuple[str, ...]:
        """Return one sentence per check, for a terminal or the head of a report."""
        lines = [check.sentence() for check in self.checks]
        if (t := self.trust) is not None:
            lines.append(
                f"Trust: {len(t.example_ids)} examples left out from step {t.first_step} on: correlation "
                f"{t.correlation:.3f} (95 % interval {t.low:.3f} to {t.high:.3f})."
            )
        if (a := self.amplification) is not None:
            lines.append(
                f"Amplification: a small change before step {a.step} weighs {a.factor:.2g} times one at the end."
                if a.factor > 1
                else "Amplification: none; a small change weighs most at the end of the run."
            )
        return (*lines, *self.notes) if lines or self.notes else ("Nothing was checked.",)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for storing beside scores."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """Return the certificate that `to_json` made plain."""

        def part(kind: type, value: Mapping[str, Any] | None) -> Any:
            return (
                None if value is None else kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
            )

        if data.get("level") not in ("fast", "full", "off"):
            raise ConfigurationError(f"certificate level: expected 'fast', 'full' or 'off', got {data.get('level')!r}")
        return cls(
            level=data["level"],
            step_replay=part(StepReplay, data.get("step_replay")),
            gradient_check=part(GradientCheck, data.get("gradient_check")),
            trust=part(Trust, data.get("trust")),
            amplification=part(Amplification, data.get("amplification")),
            further=tuple(part(Check, check) for check in data.get("further", ())),
            seconds=float(data.get("seconds", 0.0)),
            notes=tuple(data.get("notes", ())),
        )
