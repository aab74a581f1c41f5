"""The checks of a result, and how well it held.

Every check that can contradict the scores is one `Check`: what was compared, by a road that shares nothing with the
walk, at which steps, in which precision, with which tolerance, and how it came out. *Step replay*: every recorded step,
re-run, must lead to the next recorded state. *Swap check*: where examples of a batch are exchanged for others, the
plain gradient must change by what the weights of these examples say. *Gradient check*: the walk's score of a few
sampled examples against central differences of a real re-run with their weights at ``1 +- eps``. *Trust*: examples
really left out and the run taken again, because even an exact derivative stops predicting removal where training is not
smooth.

In a `fast` certificate the gradient check runs on the last steps only, with the walk's partial scores for them, and
trust on the whole run where that can be afforded; in a `full` one both do. *Amplification* is measured along the whole
walk, at no cost: how much more a change early in the run weighs than one at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lightning_sgdinf.certificate.check import Check, GradientCheck, StepReplay
from lightning_sgdinf.certificate.trust import Trust, Window
from lightning_sgdinf.errors import ConfigurationError

Level = Literal["fast", "full", "off"]
AMPLIFIES = 2.0
"""Factor of amplification above which removal is often not what the derivative says: docs/results/lds.md."""
NOTHING_CHECKED = "Nothing was checked (certificate='off')."


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
        unjudged: Sentences on what a check could not judge, and why.
        seconds: Wall time the checks took.
        notes: Sentences a reader must know, e.g. what was treated as constant.
        meaning: A sentence on what the scores are, where they are no estimate of the change by leaving out the example
            alone; it stands beside every number in the place of trust. Empty where they are one.
        model: The model whose training was checked, in words, where the scores are about several.
    """

    level: Level
    step_replay: StepReplay | None = None
    gradient_check: GradientCheck | None = None
    trust: Trust | None = None
    amplification: Amplification | None = None
    further: tuple[Check, ...] = ()
    unjudged: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    meaning: str = ""
    model: str = ""

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
            warnings.append(NOTHING_CHECKED)
        warnings.extend(self.unjudged)
        if (g := self.gradient_check) is not None and g.relative_error > 1e-2:
            cause = (
                "The run cannot be taken again in float64 (mixed precision, or random numbers that depend on the "
                "precision), so the differences are as coarse as its own numbers are, and show errors of the size of "
                "the scores only. A run with precision='32-true' is checked to a thousandth."
                if g.precision != "float64"
                else "That is rounding, in the precision of the run: a replay of the same steps in float64 agrees "
                "with the differences. InfluenceRunner(precision='64-true') gives scores without it."
            )
            warnings.append(f"Replay and central differences are {100 * g.relative_error:.0f} % apart. {cause}")
        if (t := self.trust) is not None and t.is_low:
            warnings.append(self._low_trust(t))
        if (a := self.amplification) is not None and a.is_high and (t is None or not t.is_whole):
            warnings.append(
                f"This run amplifies small changes: one before step {a.step} weighs {a.factor:.1f} times what it "
                "weighs at the end. The scores are the right derivative, but really leaving an example out often does "
                "something else in such a run, which a window of the last steps does not show. Measure trust on the "
                "whole run (certificate='full'), verify the extremes by real runs (refine), or rank by the "
                "damped replay, SgdInfluence(curvature_scale=0.3)."
            )
        return tuple(warnings)

    def _low_trust(self, trust: Trust) -> str:
        right = "The scores are the right derivative, but training" if self.gradient_check is not None else "Training"
        interval = f"{trust.low:.2f} to {trust.high:.2f}"
        known = trust.headline is not None or not trust.is_whole
        correlate = f"only at {trust.correlation:.2f} (95 % interval {interval})" if known else f"at {interval} only"
        amplified = ""
        if (a := self.amplification) is not None and a.is_high and trust.is_whole:
            amplified = (
                f" The run amplifies small changes (one before step {a.step} weighs {a.factor:.1f} times one at the "
                "end); a damped replay, SgdInfluence(curvature_scale=0.3), ranks better in such runs."
            )
        return (
            f"Low trust{'' if known else ', though not known well'}: for {len(trust.example_ids)} examples really left "
            f"out of {trust.where}, predicted and true changes correlate {correlate}. {right} is not smooth enough for "
            "them to predict removal; smaller steps or smoother activations help, and the largest scores should be "
            f"verified by re-training (lightning_sgdinf.refinement.refine).{amplified}"
        )

    def reach(self, query: str = "") -> tuple[str, ...]:
        """Return the sentences that belong beside every number: what is known of true removals, and the warnings.

        Args:
            query: Name of the query that the number is about; empty for the one that was checked.
        """
        if self.meaning:
            said = self.meaning
        elif self.trust is not None and query and self.trust.query not in ("", query):
            said = f"Trust was measured for {self.trust.query}, not for {query}. {self.trust.sentence()}"
        elif self.trust is not None:
            said = self.trust.sentence()
        elif self.level == "off":
            return self.warnings
        else:
            said = "Trust is not known: no example was really left out."
        if self.model:
            said = f"Of {self.model}: {said}"
        return (said, *(f"Warning: {warning}" for warning in self.warnings))

    def summary(self) -> tuple[str, ...]:
        """Return one sentence per check, for a terminal or the head of a report."""
        lines = [check.sentence() for check in self.checks]
        if (t := self.trust) is not None:
            lines.append(" ".join(part for part in (t.sentence(), t.cost()) if part))
        if (a := self.amplification) is not None:
            lines.append(
                f"Amplification: a small change before step {a.step} weighs {a.factor:.2g} times one at the end."
                if a.factor > 1
                else "Amplification: none; a small change weighs most at the end of the run."
            )
        said = (*([self.meaning] if self.meaning else ()), *lines, *self.notes)
        return (NOTHING_CHECKED, *said) if self.level == "off" else said or ("Nothing was checked.",)

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

        trust: Trust | None = part(Trust, data.get("trust"))
        if trust is not None and data["trust"].get("shorter"):
            trust = replace(trust, shorter=tuple(part(Window, window) for window in data["trust"]["shorter"]))
        if data.get("level") not in ("fast", "full", "off"):
            raise ConfigurationError(f"certificate level: expected 'fast', 'full' or 'off', got {data.get('level')!r}")
        return cls(
            level=data["level"],
            step_replay=part(StepReplay, data.get("step_replay")),
            gradient_check=part(GradientCheck, data.get("gradient_check")),
            trust=trust,
            amplification=part(Amplification, data.get("amplification")),
            further=tuple(part(Check, check) for check in data.get("further", ())),
            seconds=float(data.get("seconds", 0.0)),
            unjudged=tuple(data.get("unjudged", ())),
            notes=tuple(data.get("notes", ())),
            meaning=str(data.get("meaning", "")),
            model=str(data.get("model", "")),
        )
