"""Watch over what must hold while a run is recorded: numbers stay finite."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_sgdinf.log import Step
from lightning_sgdinf.record.state_reader import StateReader
from lightning_sgdinf.record.state_tracker import PackedState


class FiniteWatch:
    """Watches loss and parameters, until one of them is not finite.

    Args:
        reader: Of the state.
        problem: Called with a sentence then.
    """

    def __init__(self, reader: StateReader, problem: Callable[[str], None]) -> None:
        self._reader, self._problem = reader, problem
        self._finite = True

    def check(self, step: Step, after: PackedState | None) -> None:
        """Check the loss of a step and the state that it led to."""
        if not self._finite or after is None:
            return
        what = "loss" if step.loss is not None and not math.isfinite(step.loss) else ""
        if not what and not self._reader.finite(after.flat):
            what = "a parameter"
        if what:
            self._finite = False
            self._problem(f"{what} is not finite after step {step.index} (epoch {step.epoch})")
