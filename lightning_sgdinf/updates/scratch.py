"""Training anew, as one would after cleaning the data by hand."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, final

from torch import nn

from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.counterfactual import Retrained
from lightning_sgdinf.updates.datasets import SizedDataset, cleansed_dataset, replace_label
from lightning_sgdinf.updates.loading import state_of


@final
class ScratchRetraining:
    """A new run on the cleansed data set.

    Its batches, and with a reduced set their number, are not those of the recorded run: the difference to it is that
    of two runs, not of the selection alone. Compare with a run of the same kind on an empty selection, over several
    seeds.

    Args:
        fit: Makes a fresh model and trainer, seeds them as it likes, trains on the data set given and returns the
            model.
        dataset: The full training set, map-style.
        replace: Gives an item another class, for selections that relabel.
    """

    def __init__(
        self,
        fit: Callable[[SizedDataset], nn.Module],
        dataset: SizedDataset,
        *,
        replace: Callable[[Any, int], Any] = replace_label,
    ) -> None:
        self._fit = fit
        self._dataset = dataset
        self._replace = replace

    def __call__(self, selection: Selection) -> Retrained:
        """Train with a selection; see `ScratchRetraining`.

        Raises:
            ConfigurationError: The selection names an example that is not in the data set, or leaves none.
        """
        began = perf_counter()
        model = self._fit(cleansed_dataset(self._dataset, selection, replace=self._replace))
        return Retrained(state=state_of(model), seconds=perf_counter() - began)
