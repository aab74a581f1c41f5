"""Training anew, as one would after cleaning the data by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import nn

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.datasets import SizedDataset, cleansed_dataset, replace_label
from lightning_sgdinf.updates.loading import state_of


@dataclass(frozen=True, slots=True)
class FreshTraining:
    """A new run on the data set as the selection leaves it.

    Its batches, and with a reduced set their number, are not those of the recorded run: the difference to it is that
    of two runs, not of the selection alone. Compare with a run of the same kind on an empty selection, over several
    seeds.

    Attributes:
        fit: Makes a fresh model and trainer, seeds them as it likes, trains on the data set given and returns the
            model.
        replace: Gives an item another class, for selections that relabel.
    """

    fit: Callable[[SizedDataset], nn.Module]
    replace: Callable[[Any, int], Any] = replace_label

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Train anew, see `ModelUpdate`; the number of epochs is the given function's own and not known.

        Raises:
            ConfigurationError: The selection names an example that is not in the data set, or leaves none.
            UnsupportedRunError: There is no data set, but only the batches in the log.
        """
        if run.dataset is None:
            raise UnsupportedRunError(
                "training anew needs the training set, and the log holds its batches only; pass train_dataloaders"
            )
        with random_state.preserved():
            return self.train(run.dataset, selection)

    def train(self, dataset: SizedDataset, selection: Selection) -> Updated:
        """Train on a data set, less what a selection drops and with its new labels."""
        began = perf_counter()
        model = self.fit(cleansed_dataset(dataset, selection, replace=self.replace))
        return Updated(state=state_of(model), seconds=perf_counter() - began)
