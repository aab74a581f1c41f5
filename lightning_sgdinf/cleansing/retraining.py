"""The earlier names of `lightning_sgdinf.updates`; gone with the next release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.replay import OpenedRun, Replayer, first_step_of, replace_second
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining, Updated, replace_label


class CounterfactualRetraining:
    """`CounterfactualReplay` of a run that is open already.

    Args:
        retracer: Takes recorded steps again.
        log: The record of the run.
        epochs: As for `CounterfactualReplay`.
    """

    def __init__(self, retracer: Replayer, log: Trajectory, *, epochs: int | Literal["all"] = 1) -> None:
        warn_renamed("CounterfactualRetraining", "lightning_sgdinf.updates.CounterfactualReplay")
        self.first_step = first_step_of(log, epochs)
        self._run = OpenedRun(log=log, objective=retracer.objective)
        self._update = CounterfactualReplay(epochs, getattr(retracer, "replace_labels", replace_second))

    def __call__(self, selection: Selection) -> Updated:
        """Train with a selection."""
        return self._update.update(self._run, selection)


class ScratchRetraining:
    """`FreshTraining` on a given data set; arguments as there."""

    def __init__(
        self, fit: Callable[[Any], nn.Module], dataset: Any, *, replace: Callable[[Any, int], Any] = replace_label
    ) -> None:
        warn_renamed("ScratchRetraining", "lightning_sgdinf.updates.FreshTraining")
        self._update, self._dataset = FreshTraining(fit, replace), dataset

    def __call__(self, selection: Selection) -> Updated:
        """Train with a selection."""
        return self._update.train(self._dataset, selection)
