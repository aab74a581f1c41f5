"""A ranking by an isolation forest: examples whose features are soon alone in random partitions come first.

Looks at features only, so it finds odd inputs and not wrong labels. Cost: a forward pass over the training set, and
the trees, each grown on 256 examples.

References:
    Liu, Ting and Zhou, "Isolation Forest", ICDM 2008.
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (section 7.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.features import PENULTIMATE, feature_matrix
from lightning_sgdinf.extras import require
from lightning_sgdinf.replay import Examples, OpenedRun

PUBLISHED_PASSES = 20
"""Augmented passes over the validation set that the comparison in the SGD-influence paper fits its forest on."""


@dataclass(frozen=True, slots=True)
class IsolationForest:
    """scikit-learn's isolation forest on features of the final model.

    In a configuration::

        _target_: lightning_sgdinf.baselines.IsolationForest
        features: penultimate

    Attributes:
        trees: Number of trees, at least 1.
        max_samples: Examples per tree: a number, a share of all, or ``"auto"`` for at most 256.
        features: ``"penultimate"``, ``"inputs"`` or the name of a sub-module; see
            `lightning_sgdinf.baselines.features.features`.
        compat: Fit on 20 passes over the validation examples, augmented as the training set augments its own, as the
            comparison in the SGD-influence paper does; its forest takes no seed. Otherwise the forest is fitted on the
            training examples themselves, without augmentation.
        batch_size: Examples per forward pass.
        seed: Of the forest and of augmentation.
        title: Name of the values, for tables and axes.
    """

    trees: int = 100
    max_samples: int | float | Literal["auto"] = "auto"
    features: str = PENULTIMATE
    compat: bool = False
    batch_size: int = 500
    seed: int = 0
    title = "isolation forest"

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]`` in ``[-1, 0]``: scikit-learn's ``score_samples``.

        Raises:
            MissingExtraError: scikit-learn is not installed.
            ConfigurationError: No such features, or ``compat`` without a validation loader.
            NonFiniteError: A feature is NaN or infinite.
        """
        ensemble = require("sklearn.ensemble", extra="cli")
        forest = ensemble.IsolationForest(n_estimators=self.trees, max_samples=self.max_samples, random_state=self.seed)
        with random_state.seeded(self.seed):
            scored = self._features(run, run.training.plain())
            if self.compat:
                examples = run.validation.augmented_as(run.training)
                fitted = np.concatenate([self._features(run, examples) for _ in range(PUBLISHED_PASSES)])
            else:
                fitted = scored
            return torch.from_numpy(forest.fit(fitted).score_samples(scored))

    def _features(self, run: OpenedRun, examples: Examples) -> np.ndarray:
        return feature_matrix(run, examples, self.features, batch_size=self.batch_size)
