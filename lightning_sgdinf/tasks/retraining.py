"""Ways to train again, as a configuration names them: each makes a `Retraining` for a run that has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import nn

from lightning_sgdinf.cleansing import CounterfactualRetraining, Retraining, ScratchRetraining

if TYPE_CHECKING:
    from lightning_sgdinf.log import RunLog
    from lightning_sgdinf.replay.replayer import Replayer


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """What there is to train again with.

    Attributes:
        log: The record of the run.
        retracer: Takes its steps again.
        dataset: The training set.
        fit: Trains a new model on a data set.
    """

    log: RunLog
    retracer: Replayer
    dataset: Any
    fit: Callable[[Any], nn.Module]


class RetrainingPlan(Protocol):
    """A way to train again, before there is a run."""

    def prepare(self, run: EndedRun) -> Retraining:
        """What trains the given run again on a selection."""
        ...


@dataclass(frozen=True)
class Counterfactual:
    """The recorded steps once more, with weight 0 for dropped examples; see `CounterfactualRetraining`.

    In a configuration::

        _target_: lightning_sgdinf.tasks.retraining.Counterfactual
        epochs: 1

    Args:
        epochs: How many of the last epochs, or ``"all"``.
    """

    epochs: int | Literal["all"] = 1

    def prepare(self, run: EndedRun) -> Retraining:
        """Counterfactual retraining of the run."""
        return CounterfactualRetraining(run.retracer, run.log, epochs=self.epochs)


@dataclass(frozen=True)
class Scratch:
    """A new run on the cleansed data set, with batches of its own; see `ScratchRetraining`.

    In a configuration::

        _target_: lightning_sgdinf.tasks.retraining.Scratch
    """

    def prepare(self, run: EndedRun) -> Retraining:
        """Training from scratch on the run's data set."""
        return ScratchRetraining(run.fit, run.dataset)
