"""Class probabilities of examples by models that were trained without them.

The training examples are dealt out to ``k`` folds, class by class. For each fold a model is trained on the others and
says the probabilities of its examples. Two ways to train:

* by default the recorded run is taken again with weight 0 for the fold's examples: the same initial model, batches,
  learning rates and number of steps, the losses of a batch divided by what is left of it. Nothing but the record is
  needed, and of the run its state 0. Layers that couple the rows of a batch (BatchNorm) still see the fold's inputs,
  not its labels;
* a function that trains a new model on a data set, which is given the training set without the fold.

Cost: ``k`` trainings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from lightning_sgdinf.baselines.class_probabilities import ClassProbabilities, class_probabilities
from lightning_sgdinf.baselines.evidence import Evidence
from lightning_sgdinf.errors import ConfigurationError, ModelMismatchError, StateNotStoredError
from lightning_sgdinf.extras import require
from lightning_sgdinf.replay.averaging import run_and_average, with_average
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.replay.weight_audit import audit_loss
from lightning_sgdinf.state import ModelState

Fit = Callable[[Any], nn.Module]
"""Makes a fresh model, trains it on the data set given and returns it."""


def out_of_sample(
    evidence: Evidence, *, folds: int, seed: int, fit: Fit | None = None, batch_size: int = 500
) -> ClassProbabilities:
    """Class probabilities of every training example by a model that was trained without it.

    Args:
        evidence: The run.
        folds: Number ``k`` of models, at least 2 and at most the number of examples of the largest class.
        seed: Of the folds.
        fit: Trains a model; the recorded run is taken again if ``None``.
        batch_size: Examples per forward pass.

    Returns:
        Of all ``N`` training examples, without augmentation.

    Raises:
        ConfigurationError: The step's loss is not one of a classifier, or the folds do not fit the data.
        StateNotStoredError: The record lacks state 0, and there is no ``fit``.
        ModelMismatchError: ``fit`` returned another model than the recorded one.
        UntappedLossError: The loss has a term that example weights do not reach, and there is no ``fit``.
        UnsupportedRunError: The recorded run cannot be taken again, and there is no ``fit``.
    """
    plain = evidence.training.plain()
    found = class_probabilities(evidence, plain, batch_size=batch_size)
    train = _Recorded(evidence) if fit is None else _Fitted(evidence, fit)
    for held_out in deal_out(found.labels, folds, seed):
        model = train(held_out)
        part = class_probabilities(evidence, plain.subset(held_out), model, batch_size=batch_size)
        found.log_values[held_out] = part.log_values
    return found


def deal_out(labels: Tensor, folds: int, seed: int) -> list[Tensor]:
    """Ids of each fold, increasing: scikit-learn's shuffled ``StratifiedKFold``.

    Raises:
        ConfigurationError: No class has as many examples as there are folds, or there are fewer than two folds.
    """
    selection = require("sklearn.model_selection", extra="cli")
    most = int(labels.bincount().max())
    if not 2 <= folds <= most:
        raise ConfigurationError(f"folds: expected 2 to {most}, the size of the largest class, got {folds}")
    split = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [torch.from_numpy(held_out) for _, held_out in split.split(np.zeros(len(labels)), labels.numpy())]


class _Recorded:
    """The recorded run taken again without some examples."""

    def __init__(self, evidence: Evidence) -> None:
        log, objective = evidence.log, evidence.objective
        if 0 not in log.state_indices:
            raise StateNotStoredError(
                f"cross-validation takes the recorded run again from state 0, which was not kept "
                f"(keep={log.header.keep!r}). Record with keep='every_step', or give fit=, a function that trains a "
                "new model on a data set."
            )
        self._log, self._size = log, evidence.size
        self._start = log.state(0)
        audit_loss(objective, log.state(len(log)), log.step(len(log) - 1), log.step(0))
        self._retracer = Replayer(log, objective, divisor="reduced")
        self._fed: dict[str, Tensor] | None = None

    def __call__(self, held_out: Tensor) -> ModelState:
        weights = torch.ones(self._size, dtype=torch.float64)
        weights[held_out] = 0.0
        if self._log.average is None:
            return self._retracer.run(self._start, 0, len(self._log), weights=weights)
        if self._fed is None:
            self._fed = run_and_average(self._retracer, self._log, self._start, 0)[1]
        end, fed = run_and_average(self._retracer, self._log, self._start, 0, weights=weights)
        return with_average(end, self._log.average, fed, self._fed)


class _Fitted:
    """A new model trained on the data set without some examples."""

    def __init__(self, evidence: Evidence, fit: Fit) -> None:
        self._evidence, self._fit = evidence, fit

    def __call__(self, held_out: Tensor) -> ModelState:
        keep = torch.ones(self._evidence.size, dtype=torch.bool)
        keep[held_out] = False
        model = self._fit(Subset(self._evidence.training.dataset, keep.nonzero().flatten().tolist()))
        params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        objective = self._evidence.objective
        for name, known in objective.module.named_parameters():
            own = params.get(name)
            if own is None or own.shape != known.shape:
                raise ModelMismatchError(
                    f"parameter {name!r} of shape {tuple(known.shape)} is not in the model that fit= returned; make "
                    "the model that was recorded"
                )
            if name not in objective.vector.names and not torch.equal(own.detach().cpu(), known.detach().cpu()):
                raise ModelMismatchError(
                    f"parameter {name!r} is not trained and has other values in the model that fit= returned than in "
                    "the recorded run; make it with the same frozen weights"
                )
        return ModelState(params={n: params[n] for n in objective.vector.names}, buffers=buffers).clone()
