r"""Rebuild states that were not stored by taking recorded steps again: equal to the last bit, or close.

Where a step taken again gives the recorded bits (the same machine, threads and torch), every rebuilt state must have
its recorded checksum: ``"exact"``. Elsewhere sums are rounded in another order, and the rebuilt run drifts away from
the recorded one, until the next stored state brings it back: ``"close"``. How far it drifted is measured there,

.. math:: \lVert \hat s_b - s_b\rVert \,/\, \lVert s_b - s_a\rVert,

with :math:`s_a, s_b` the stored states at the ends of the stretch and :math:`\hat s_b` what its steps led to from
:math:`s_a`; of parameters, of each of the optimizer's tensors and of the buffers apart, the largest counts. More than
1e-4 is an error: a hundred times of what rounding alone makes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import ConfigurationError, StepMismatchError
from lightning_sgdinf.log import Step, Trajectory, recorded_part, state_checksum
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.replay.reproducibility import acting_hooks, same_machine, why_bits_differ
from lightning_sgdinf.state import ModelState

Rebuild: TypeAlias = Literal["exact", "close"]
_Values: TypeAlias = tuple[Tensor, Tensor, Tensor]
DRIFT = 1e-4
"""Largest drift at a stored state that is let pass, as a part of what the stretch before it moved."""


def chosen_rebuild(asked: Literal["auto", "exact", "close"], log: Trajectory, device: torch.device) -> Rebuild:
    """Return how states are rebuilt: as asked, or exactly where this machine is like the recorded one."""
    if asked != "auto":
        return asked
    return "exact" if same_machine(log.header, device) else "close"


@dataclass(slots=True)
class Drift:
    """The rebuilt states so far, and their distance from the record.

    Attributes:
        rebuilt: States.
        same: Of these, states with the recorded checksum.
        stretches: Between stored states, with a drift measured at their end.
        largest: Drift, dimensionless.
        step: The stored state where it was largest; -1 if nothing drifted.
        part: Of the state.
    """

    rebuilt: int = 0
    same: int = 0
    stretches: int = 0
    largest: float = 0.0
    step: int = -1
    part: str = ""


@dataclass(frozen=True, slots=True)
class StretchEnd:
    """The end of a stretch of rebuilt states.

    Attributes:
        begin: Index of the stored state that it was rebuilt from.
        index: Index of the stored state that its steps lead to.
        state: What they led to this time.
    """

    begin: int
    index: int
    state: ModelState


class Rebuilder:
    """Takes recorded steps again to rebuild states.

    Args:
        log: The record.
        objective: The opened model.
        rebuild: ``"exact"`` or ``"close"``.

    Attributes:
        drift: So far.
        end: Of the stretch that was rebuilt last; ``None`` where states are rebuilt exactly.
    """

    def __init__(self, log: Trajectory, objective: Objective, rebuild: Rebuild) -> None:
        self.replayer = Replayer(log, objective)
        self.drift = Drift()
        self.end: StretchEnd | None = None
        self._log, self._objective, self._rebuild = log, objective, rebuild

    @property
    def is_close(self) -> bool:
        """Return true if states need not have the recorded bits."""
        return self._rebuild == "close"

    def advance(self, state: ModelState, step: Step) -> ModelState:
        """Take one recorded step.

        Raises:
            StepMismatchError: States are rebuilt exactly, and the next has another checksum than the recorded one.
            ConfigurationError: The precision is not the recorded one.
        """
        after, log = self.replayer.advance(state, step), self._log
        self.drift.rebuilt += 1
        recorded = log.state_checksum(step.index + 1)
        if recorded is None:
            return after
        checksum = state_checksum(recorded_part(log, step.index + 1, after))
        self.drift.same += checksum == recorded
        if checksum != recorded:
            _refuse_other_precision(self.replayer)
            if not self.is_close:
                raise StepMismatchError(
                    f"state {step.index + 1}, rebuilt by taking step {step.index} again, differs from the recorded one "
                    f"(checksum {recorded:08x} recorded, {checksum:08x} now). {why_bits_differ(log.header)}"
                )
        return after

    def arrive(self, begin: int, state: ModelState, step: Step) -> None:
        """Take the last step of a stretch, and measure the drift at the stored state it leads to.

        Args:
            begin: Index of the stored state that the stretch was rebuilt from.
            state: Rebuilt, before the step.
            step: Leads to a stored state.

        Raises:
            StepMismatchError: The drift is more than 1e-4 of what the stretch moved.
        """
        index = step.index + 1
        if not self.is_close:
            return
        rebuilt, stored = self.replayer.advance(state, step), self._log.state(index)
        self.end = StretchEnd(begin, index, rebuilt)
        drift, part = self._drift(rebuilt, stored, self._log.state(begin))
        self.drift.stretches += 1
        if not drift <= DRIFT:
            hooks = acting_hooks(self._log.header)
            raise StepMismatchError(
                f"steps {begin} to {step.index}, taken again from stored state {begin}, lead {drift:.1e} of what they "
                f"moved away from stored state {index} ({part}; allowed with rebuild='close': {DRIFT:.0e}). Rounding "
                "that differs makes less, unless training amplifies it: record with states closer together, "
                "keep='every(k)' with a smaller k, or 'every_step'; replay where the run was trained. Other causes: "
                f"weights or gradients changed outside the optimizer, a model that was changed after training. {hooks}"
            )
        if drift > self.drift.largest:
            self.drift.largest, self.drift.step, self.drift.part = drift, index, part

    def _drift(self, rebuilt: ModelState, stored: ModelState, before: ModelState) -> tuple[float, str]:
        """Return the largest drift over the parts of a state, and which part."""
        worst, name = 0.0, ""
        for part, values in self._parts(rebuilt, stored, before):
            gap = moved = size = 0.0
            for now, then, earlier in values:
                gap += _square(now - then)
                moved += _square(then - earlier)
                size += _square(then)
            scale = moved or size
            drift = math.sqrt(gap / scale) if scale > 0 else math.sqrt(gap)
            if not drift <= worst:  # a NaN counts as the largest
                worst, name = drift, part
        return worst, name

    def _parts(
        self, rebuilt: ModelState, stored: ModelState, before: ModelState
    ) -> Iterator[tuple[str, Iterator[_Values]]]:
        """Yield the parts that are compared, and their tensors one by one: rebuilt, stored and earlier values."""
        masks = self._vanishing()
        yield (
            "parameters",
            (
                _wide(rebuilt.params[n], value, before.params.get(n), masks.get(n))
                for n, value in stored.params.items()
                if n in rebuilt.params
            ),
        )
        yield (
            "buffers",
            (
                _wide(rebuilt.buffers[n], value, before.buffers.get(n), None)
                for n, value in stored.buffers.items()
                if n in rebuilt.buffers
            ),
        )
        for key in sorted({key for entries in stored.optimizer.values() for key in entries}):
            yield (
                f"the optimizer's {key}",
                (
                    _wide(rebuilt.optimizer[n][key], entries[key], before.optimizer.get(n, {}).get(key), masks.get(n))
                    for n, entries in stored.optimizer.items()
                    if key in entries and key in rebuilt.optimizer.get(n, {})
                ),
            )

    def _vanishing(self) -> dict[str, Tensor]:
        """Return, by parameter, the elements whose gradient is zero but for rounding.

        An optimizer makes whole steps of that rounding, which no loss feels.
        """
        names = self._objective.vector.names
        return {names[place]: chosen.cpu() for place, chosen in self._objective.vanishing.elements.items()}


def _wide(value: Tensor, stored: Tensor, before: Tensor | None, left_out: Tensor | None) -> _Values:
    """Return three values of a tensor in float64 on the CPU, those of some elements put to zero."""
    earlier = torch.zeros_like(stored) if before is None or before.shape != stored.shape else before
    real = (torch.view_as_real(v) if v.is_complex() else v for v in (value, stored, earlier))
    now, then, earlier = (v.detach().to("cpu", torch.float64) for v in real)
    if left_out is not None and left_out.shape == then.shape:
        now, then, earlier = (v.masked_fill(left_out, 0.0) for v in (now, then, earlier))
    return now, then, earlier


def _square(value: Tensor) -> float:
    return float(value.reshape(-1).dot(value.reshape(-1)))


def _refuse_other_precision(replayer: Replayer) -> None:
    """Refuse to rebuild states in another precision than the recorded one: they would be other states."""
    log, dtype = replayer.log, replayer.objective.dtype
    recorded = {name for _, _, name in log.header.parameters}
    if dtype is not None and {dtype_name(dtype)} != recorded:
        raise ConfigurationError(
            f"the run was recorded in {', '.join(sorted(recorded))} and the replay computes in {dtype_name(dtype)}, "
            f"but not all states are stored (keep={log.header.keep!r}), and rebuilding them needs the recorded "
            "precision. Leave out precision=, or record with keep='every_step'."
        )
