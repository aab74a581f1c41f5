"""Ways to train again, as a configuration names them: each makes a `Retraining` for a run that has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from torch import nn

from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining, Retraining


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """What there is to train again with.

    Attributes:
        run: The recorded run.
        dataset: The training set.
        fit: Trains a new model on a data set.
    """

    run: OpenedRun
    dataset: Any
    fit: Callable[[Any], nn.Module]


class RetrainingPlan(Protocol):
    """A way to train again, before there is a run."""

    def prepare(self, run: EndedRun) -> Retraining:
        """What trains the given run again on a selection."""
        ...


@dataclass(frozen=True)
class Counterfactual:
    """The recorded steps once more, with weight 0 for dropped examples; see `CounterfactualReplay`.

    In a configuration::

        _target_: lightning_sgdinf.tasks.retraining.Counterfactual
        epochs: 1

    Args:
        epochs: How many of the last epochs, or ``"all"``.
    """

    epochs: int | Literal["all"] = 1

    def prepare(self, run: EndedRun) -> Retraining:
        """Counterfactual retraining of the run."""
        return partial(CounterfactualReplay(self.epochs).update, run.run)


@dataclass(frozen=True)
class Scratch:
    """A new run on the cleansed data set, with batches of its own; see `FreshTraining`.

    In a configuration::

        _target_: lightning_sgdinf.tasks.retraining.Scratch
    """

    def prepare(self, run: EndedRun) -> Retraining:
        """Training from scratch on the run's data set."""
        return partial(FreshTraining(run.fit).train, run.dataset)
