"""Watch over what must hold while a run is recorded: constants stay constant, numbers finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from lightning_sgdinf.log import Step
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.record.state_reader import StateReader
from lightning_sgdinf.record.state_tracker import PackedState


class ConstantsWatch:
    """Watches the parameters that nothing trains.

    Args:
        reader: Of the state.
        problem: Called with a sentence when one of them changes.
    """

    def __init__(self, reader: StateReader, problem: Callable[[str], None]) -> None:
        self._reader, self._problem = reader, problem
        self._known = _digests(reader.constants)

    def check(self) -> None:
        """Check that they have stayed what they were."""
        present = _digests(self._reader.constants)
        moved = [n for n, digest in present.items() if self._known.get(n, digest) != digest]
        self._known |= present
        if moved:
            self._problem(
                f"{', '.join(moved[:5])} changed in training although no optimizer holds "
                f"{'them' if len(moved) > 1 else 'it'}, and its values are not recorded. Register as buffers what is "
                "updated by hand"
            )


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


def _digests(constants: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: batch_digest(value) for name, value in constants.items()}
