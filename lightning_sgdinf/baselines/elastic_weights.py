"""A ranking by two models: which training examples the model likes less once it learnt its failures.

The second model is the first with its failures learnt, held by elastic weights (EWC). No curvature but a diagonal, and
no query but a set of failures; as a ranking of the whole set it is at chance for wrong labels (docs/results/repair.md).

References:
    Tanno, Pradier, Nori and Li, "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022
    (arXiv:2207.04806), with the sign of the failures' likelihood as it has to be.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.replay import OpenedRun, class_probabilities
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.repair import ElasticWeights, Failures, learnt


@dataclass(frozen=True, slots=True)
class TwoModels:
    r"""Minus the rise of each example's loss, from the final model to the one that learnt its failures.

    .. math:: l_j(\hat\theta) - l_j(\theta_{+F})

    Attributes:
        failures: What is learnt; those of `Failures.halves` if ``None``.
        weights: What holds the model.
        batch_size: Examples per forward pass.
        seed: Of the halves, where no failures are given.
        title: Name of the values, for tables and axes.
    """

    failures: Failures | None = None
    weights: ElasticWeights = field(default_factory=ElasticWeights)
    batch_size: int = 500
    seed: int = 0
    title = "fall of the loss as failures are learnt"

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``, in nats.

        Raises:
            ConfigurationError: The run is not that of a classifier.
            DivergenceError: Learning the failures diverged.
        """
        failures = self.failures or Failures.halves(run, seed=self.seed)
        second = learnt(run, failures, self.weights)
        values = self._losses(run, run.model) - self._losses(run, second)
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError("a training example has no finite loss at one of the two models")
        return values

    def _losses(self, run: OpenedRun, model: ModelState) -> Tensor:
        with random_state.preserved():
            answers = class_probabilities(run, run.training.plain(), model, batch_size=self.batch_size)
        return -answers.log_values.gather(1, answers.labels[:, None])[:, 0]
