"""The checks of a result, and how well it held.

Three checks, each of which can contradict the scores. *Step replay*: every recorded step, re-run, must lead to the
next recorded state. *Gradient check*: the walk's score of a few sampled examples against central differences of a real
re-run with their weights at ``1 +- eps``. *Trust*: a few sampled examples really left out and the run taken again,
because even an exact derivative stops predicting removal where training is not smooth.

In a `fast` certificate these two run on a window of the last steps only (from the recorded state at its start), with
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
    """

    steps: int
    bitwise: int
    largest_deviation: float
    step: int = -1
    tensor: str = ""
    tolerance: float = 0.0


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
    """

    first_step: int
    example_ids: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    relative_error: float
    tolerance: float


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
        seconds: Wall time the checks took.
        notes: Sentences a reader must know, e.g. what was treated as constant.
    """

    level: Level
    step_replay: StepReplay | None = None
    gradient_check: GradientCheck | None = None
    trust: Trust | None = None
    amplification: Amplification | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

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
        lines: list[str] = []
        if (r := self.step_replay) is not None:
            lines.append(
                f"Step replay: {r.steps} steps, re-run, lead to the recorded states, {r.bitwise} of them bit for "
                f"bit; largest deviation {r.largest_deviation:.1e} of a step."
            )
        if (g := self.gradient_check) is not None:
            lines.append(
                f"Gradient check: {len(g.example_ids)} examples against central differences from step {g.first_step} "
                f"on: relative error {g.relative_error:.1e}."
            )
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
            seconds=float(data.get("seconds", 0.0)),
            notes=tuple(data.get("notes", ())),
        )
