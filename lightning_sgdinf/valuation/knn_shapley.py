r"""Shapley values of a nearest-neighbour classifier, in closed form.

The utility is the part of the ``K`` nearest members of a coalition that have the label of a validation example,
:math:`(1/K) \sum_{k \le \min(K, |S|)} [y_{(k)} = y]`, averaged over the validation examples, on features of the
recorded model. With the training examples in order of distance, 1 the nearest,

.. math:: \phi_N = \frac{[y_N = y]}{N} \frac{\min(K, N)}{K}, \qquad
   \phi_i = \phi_{i+1} + \frac{[y_i = y] - [y_{i+1} = y]}{K} \frac{\min(K, i)}{i}.

Nothing is trained: a pass over both data sets, and a sort of the training set per validation example. It says nothing
of the recorded run's own queries, so it is a ranking, like a baseline; among a hundred examples it finds wrong labels
as well as Shapley values of thousands of trainings. Useless where features do not tell the classes apart.

References:
    Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", VLDB 2019 (arXiv:1908.08619).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.features import PENULTIMATE, features
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, class_probabilities

ROWS = 100
"""Validation examples whose distances are held at once."""


@dataclass(frozen=True, slots=True)
class KnnShapley:
    """Shapley values of the nearest neighbours' vote; see the module's text.

    A baseline: the values are the Shapley values, the most negative first in a ranking by harm. Those below 0 make the
    vote worse. In Hydra::

        estimator:
          _target_: lightning_sgdinf.valuation.KnnShapley
          neighbours: 5

    Attributes:
        neighbours: ``K``, at least 1.
        features: ``"penultimate"``, ``"inputs"`` or the name of a sub-module; see
            `lightning_sgdinf.baselines.features.features`.
        batch_size: Examples per forward pass.
        seed: Of what a data set draws that does not say what its examples are without augmentation.
        title: Name of the values, for tables and axes.

    Raises:
        ConfigurationError: ``neighbours`` is below 1.
    """

    neighbours: int = 5
    features: str = PENULTIMATE
    batch_size: int = 500
    seed: int = 0
    title = "KNN-Shapley value"

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ConfigurationError(f"KnnShapley(neighbours): expected 1 or more, got {self.neighbours}")

    def rank(self, run: OpenedRun) -> Tensor:
        """Return the values ``[N]``, which add up to the accuracy of the vote of all.

        Raises:
            ConfigurationError: No such features, no validation loader, or a loss that is not one of a classifier.
            NonFiniteError: A feature is NaN or infinite.
        """
        with random_state.seeded(self.seed):
            rows, labels = [], []
            for examples in (run.training.plain(), run.validation.plain()):
                rows.append(features(run, examples, self.features, batch_size=self.batch_size).flatten(1))
                labels.append(class_probabilities(run, examples, batch_size=self.batch_size).labels)
        return knn_shapley(rows[0], labels[0], rows[1], labels[1], self.neighbours)


def knn_shapley(
    train: Tensor, train_labels: Tensor, validation: Tensor, validation_labels: Tensor, neighbours: int
) -> Tensor:
    """Return the Shapley values of a nearest-neighbour vote; see the module's text. Equal distances go by id.

    Args:
        train: Features ``[N, D]``.
        train_labels: ``[N]``.
        validation: Features ``[V, D]``.
        validation_labels: ``[V]``.
        neighbours: ``K``, at least 1.

    Returns:
        Float64 ``[N]``.
    """
    count = len(train)
    place = torch.arange(1, count + 1, dtype=torch.float64)
    step = place.clamp_max(neighbours) / (neighbours * place)  # min(K, i) / (K i)
    values = torch.zeros(count, dtype=torch.float64)
    for rows, labels in zip(validation.split(ROWS), validation_labels.split(ROWS), strict=True):
        order = torch.cdist(rows, train).argsort(dim=1, stable=True)
        right = (train_labels[order] == labels[:, None]).double()
        gains = right * step  # of the farthest; of the others, differences to the next
        gains[:, :-1] -= right[:, 1:] * step[:-1]
        phi = gains.flip(1).cumsum(1).flip(1)
        values.index_add_(0, order.reshape(-1), phi.reshape(-1))
    return values / len(validation)
