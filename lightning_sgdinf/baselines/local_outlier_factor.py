"""A ranking by the local outlier factor: examples in thinner places than their neighbours' come first.

Looks at features only, so it finds odd inputs and not wrong labels. Cost: a forward pass over the training set, and the
nearest neighbours of every example: for features of more than some dozen dimensions, the distances of all pairs.

References:
    Breunig, Kriegel, Ng and Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.baselines.features import PENULTIMATE, scored_and_fitted
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True)
class LocalOutlierFactor:
    """scikit-learn's local outlier factor on features of the final model.

    In a configuration::

        _target_: lightning_sgdinf.baselines.LocalOutlierFactor
        neighbours: 20

    Attributes:
        neighbours: Number of neighbours, at least 1; no more are taken than there are fitted examples, less one.
        features: ``"penultimate"``, ``"inputs"`` or the name of a sub-module; see
            `lightning_sgdinf.baselines.features.features`.
        compat: Neighbours are looked for among the validation examples in place of the other training examples.
        batch_size: Examples per forward pass.
        seed: Of what a data set draws that does not say what its examples are without augmentation.
        title: Name of the values, for tables and axes.
    """

    neighbours: int = 20
    features: str = PENULTIMATE
    compat: bool = False
    batch_size: int = 500
    seed: int = 0
    title = "local outlier factor"

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ConfigurationError(f"LocalOutlierFactor(neighbours): expected 1 or more, got {self.neighbours}")

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``: minus the factor, about -1 inside and lower outside.

        Raises:
            MissingExtraError: scikit-learn is not installed.
            ConfigurationError: No such features, or ``compat`` without a validation loader.
            NonFiniteError: A feature is NaN or infinite.
        """
        neighbors = require("sklearn.neighbors", extra="cli")
        scored, fitted = scored_and_fitted(
            run, self.features, compat=self.compat, batch_size=self.batch_size, seed=self.seed
        )
        count = min(self.neighbours, len(fitted) - 1)
        if count < 1:
            raise ConfigurationError("LocalOutlierFactor: expected two examples or more to compare, got one")
        # An example that was fitted is not its own neighbour; only `novelty=False` knows that.
        factor = neighbors.LocalOutlierFactor(n_neighbors=count, novelty=self.compat).fit(fitted)
        return torch.from_numpy(factor.score_samples(scored) if self.compat else factor.negative_outlier_factor_)
