"""A ranking by confident learning: labels that models trained without the example do not believe come first.

Cross-validation gives class probabilities of every training example, from which cleanlab, the package of confident
learning's authors, computes which labels are wrong and how good each label is. Cost: one training per fold
(`lightning_sgdinf.baselines.cross_validation`), next to which the rest is nothing.

References:
    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.cross_validation import Fit, out_of_sample
from lightning_sgdinf.baselines.features import first_not_finite
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.extras import require
from lightning_sgdinf.replay import OpenedRun, class_probabilities

Quality = Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"]
Issues = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given", "low_self_confidence"
]


@dataclass(frozen=True, slots=True, eq=False)
class ConfidentLearning:
    """cleanlab's label quality at probabilities from cross-validation.

    In a configuration::

        _target_: lightning_sgdinf.baselines.ConfidentLearning
        folds: 5

    Attributes:
        folds: Models to train, at least 2.
        quality: Measure of a label's quality: the probability of the label, its margin over the others (both also count
            where the label is right but the example hard), or the entropy over that probability.
        issues: cleanlab's criterion for wrong labels; these come first, each part in order of quality. ``None``
            for the order of quality alone.
        fit: Trains a new model on a data set, for the folds; the recorded run is taken again without them if ``None``.
        probabilities: ``[N, C]``, out-of-sample class probabilities of the training examples, from elsewhere; nothing
            is trained then.
        labels: Given classes ``[N]`` beside ``probabilities``, whole numbers below ``C``; what the loss function of the
            training step is given if ``None``.
        batch_size: Examples per forward pass.
        seed: Of the folds.
        title: Name of the values, for tables and axes.
    """

    folds: int = 5
    quality: Quality = "self_confidence"
    issues: Issues | None = None
    fit: Fit | None = field(default=None, repr=False)
    probabilities: Any = field(default=None, repr=False)
    labels: Any = field(default=None, repr=False)
    batch_size: int = 500
    seed: int = 0
    title = "label quality (cleanlab)"

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ConfigurationError(f"ConfidentLearning(folds): expected 2 or more, got {self.folds}")
        if self.fit is not None and self.probabilities is not None:
            raise ConfigurationError("ConfidentLearning: expected fit or probabilities, got both; give one of them")
        if self.labels is not None and self.probabilities is None:
            raise ConfigurationError("ConfidentLearning: expected labels only beside probabilities; leave them out")

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]`` in ``[-1, 1]``: the quality of the label, less 1 where it counts as wrong.

        Raises:
            MissingExtraError: cleanlab is not installed.
            ConfigurationError: No classifier, or probabilities or folds that do not fit the data.
            NonFiniteError: Probabilities are not finite.
            SgdInfluenceError: What `lightning_sgdinf.baselines.cross_validation.out_of_sample` raises.
        """
        scoring = require("cleanlab.rank", extra="cleanlab")
        filtering = require("cleanlab.filter", extra="cleanlab")
        with random_state.seeded(self.seed):
            labels, values = (tensor.numpy() for tensor in self._labels_and_probabilities(run))
            quality = scoring.get_label_quality_scores(labels, values, method=self.quality)
            if self.issues is not None:
                wrong = filtering.find_label_issues(labels, values, filter_by=self.issues, n_jobs=1)
                quality = quality - wrong
        return torch.from_numpy(np.asarray(quality, np.float64))

    def _labels_and_probabilities(self, run: OpenedRun) -> tuple[Tensor, Tensor]:
        if self.probabilities is None:
            held_out = out_of_sample(run, folds=self.folds, seed=self.seed, fit=self.fit, batch_size=self.batch_size)
            return held_out.labels, held_out.values
        if self.labels is None:
            labels = class_probabilities(run, run.training.plain(), batch_size=self.batch_size).labels
        else:
            labels = torch.as_tensor(self.labels).detach().cpu()
        return _checked(torch.as_tensor(self.probabilities).detach().to("cpu", torch.float64), labels, run.examples)


def _checked(values: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return labels and probabilities from elsewhere, once they are known to fit the training set."""
    if labels.shape != (count,) or labels.is_floating_point() or int(labels.min()) < 0:
        raise ConfigurationError(
            f"ConfidentLearning(labels): expected {count} whole numbers from 0 on, got {labels.dtype} of shape "
            f"{list(labels.shape)}"
        )
    if values.ndim != 2 or len(values) != count or values.shape[1] <= int(labels.max()):
        raise ConfigurationError(
            f"ConfidentLearning(probabilities): expected shape [{count}, C] with C above the largest label "
            f"{int(labels.max())}, got {list(values.shape)}"
        )
    if (wrong := first_not_finite(values)) is not None:
        raise NonFiniteError(f"ConfidentLearning(probabilities): those of example {wrong} are not all finite")
    ones = torch.ones(count, dtype=torch.float64)
    if float(values.min()) < 0 or not torch.allclose(values.sum(1), ones, atol=1e-3):
        raise ConfigurationError(
            "ConfidentLearning(probabilities): expected rows of numbers in [0, 1] that sum to 1; pass the softmax of "
            "logits"
        )
    return labels.long(), values
