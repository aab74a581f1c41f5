"""The value of training on some examples, by training a fresh model on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.updates import ReducedDataset, state_of
from lightning_sgdinf.updates.datasets import SizedDataset
from lightning_sgdinf.valuation.recorded import RecordedUtility
from lightning_sgdinf.valuation.utility import Groups


@dataclass(frozen=True, slots=True)
class FreshTrainings:
    """Trains a fresh model for every coalition, one after another.

    For what the recorded run cannot tell: another number of steps for fewer examples, other batches, a model that is
    not trained by gradients as long as its class is the recorded one's. Slow: a value of a hundred examples needs
    thousands of trainings.

    Attributes:
        fit: Makes a fresh model and trainer, seeds them, trains on the data set given and returns the model. It must
            give the same model for the same examples.
        empty: The queries' values of a model that was trained on nothing, one per query: the share of the most frequent
            label for an accuracy, the logarithm of the number of classes for a cross entropy. ``None`` asks the initial
            model of the recorded run.
    """

    fit: Callable[[SizedDataset], nn.Module]
    empty: Sequence[float] | None = None

    def utility(self, run: OpenedRun, query: BoundQuery, groups: Groups | None = None) -> FreshUtility:
        """Return the utility of a run's data and a query.

        Raises:
            UnsupportedRunError: There is no data set, but only the batches in the log.
            ConfigurationError: Groups that do not fit, or another number of values for nobody.
        """
        return FreshUtility(run, query, groups, self)


class FreshUtility(RecordedUtility):
    """A utility by fresh trainings; arguments as for `RecordedUtility`, and how to train."""

    def __init__(self, run: OpenedRun, query: BoundQuery, groups: Groups | None, trainings: FreshTrainings) -> None:
        super().__init__(run, query, groups)
        if run.dataset is None:
            raise UnsupportedRunError(
                "fresh trainings need the training set, and the log holds its batches only; pass train_dataloaders"
            )
        if trainings.empty is not None and len(trainings.empty) != len(query.names):
            raise ConfigurationError(
                f"FreshTrainings(empty): expected one value per query ({len(query.names)}), got {len(trainings.empty)}"
            )
        self.trainings = trainings

    def values(self, coalitions: Tensor) -> Tensor:
        """See `Utility`; one training after another."""
        return torch.stack([self._value(ids) for ids in self.left_out(coalitions)])

    def _value(self, left_out: tuple[int, ...]) -> Tensor:
        if len(left_out) == sum(map(len, self.members)) == self.run.examples:
            if self.trainings.empty is not None:
                return torch.tensor(self.trainings.empty, dtype=torch.float64)
            return self.query.value(self.run.log.state(0))
        with random_state.preserved():
            model = self.trainings.fit(ReducedDataset(self.run.dataset, left_out))
        return self.query.value(state_of(model))

    @property
    def key(self) -> str:
        """See `RecordedUtility`; a function is told by its name alone."""
        fit = self.trainings.fit
        return repr((super().key, getattr(fit, "__qualname__", type(fit).__qualname__), self.trainings.empty))
