"""The earlier name and arguments of a `Replayer`; gone with the next release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.replay.edits import ReplaceLabels, relabelled, replace_second
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.replayer import Divisor, Replayer
from lightning_sgdinf.state import ModelState


class Retracer(Replayer):
    """A `Replayer` that takes new labels in place of an edit."""

    def __init__(
        self,
        log: Trajectory,
        objective: Objective,
        *,
        replace_labels: ReplaceLabels = replace_second,
        divisor: Divisor = "kept",
    ) -> None:
        warn_renamed("Retracer", "lightning_sgdinf.replay.Replayer")
        super().__init__(log, objective, divisor=divisor)
        self.replace_labels = replace_labels

    def run(
        self, state: ModelState, start: int, stop: int, *, relabel: Mapping[int, int] | None = None, **how: Any
    ) -> ModelState:
        """Take steps; see `Replayer.run`.

        Args:
            state: State ``start``.
            start: First step.
            stop: One past the last step.
            relabel: New labels by example id.
            how: As for `Replayer.run`.
        """
        edit = relabelled(relabel, self.replace_labels) if relabel else None
        return super().run(state, start, stop, edit=edit, **how)
