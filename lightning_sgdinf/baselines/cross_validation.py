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

from lightning_sgdinf.errors import ConfigurationError, ModelMismatchError, StateNotStoredError
from lightning_sgdinf.extras import require
from lightning_sgdinf.replay import ClassProbabilities, CounterfactualRun, OpenedRun, audit_steps, class_probabilities
from lightning_sgdinf.state import ModelState

Fit = Callable[[Any], nn.Module]
"""Makes a fresh model, trains it on the data set given and returns it."""


def out_of_sample(
    run: OpenedRun, *, folds: int, seed: int, fit: Fit | None = None, batch_size: int = 500
) -> ClassProbabilities:
    """Compute class probabilities of every training example by a model that was trained without it.

    Args:
        run: The run.
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
    plain = run.training.plain()
    probabilities = class_probabilities(run, plain, batch_size=batch_size)
    train = _Recorded(run) if fit is None else _Fitted(run, fit)
    for held_out in deal_out(probabilities.labels, folds, seed):
        model = train(held_out)
        fold = class_probabilities(run, plain.subset(held_out), model, batch_size=batch_size)
        probabilities.log_values[held_out] = fold.log_values
    return probabilities


def deal_out(labels: Tensor, folds: int, seed: int) -> list[Tensor]:
    """Return the ids of each fold, increasing: scikit-learn's shuffled ``StratifiedKFold``.

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

    def __init__(self, run: OpenedRun) -> None:
        if 0 not in run.log.state_indices:
            raise StateNotStoredError(
                f"cross-validation takes the recorded run again from state 0, which was not kept "
                f"(keep={run.log.header.keep!r}). Record with keep='every_step', or give fit=, a function that trains "
                "a new model on a data set."
            )
        audit_steps(run)
        self._size = run.examples
        self._counterfactual = CounterfactualRun(run, divisor="reduced")

    def __call__(self, held_out: Tensor) -> ModelState:
        weights = torch.ones(self._size, dtype=torch.float64)
        weights[held_out] = 0.0
        return self._counterfactual.run(weights=weights)


class _Fitted:
    """A new model trained on the data set without some examples."""

    def __init__(self, run: OpenedRun, fit: Fit) -> None:
        self._run, self._fit = run, fit

    def __call__(self, held_out: Tensor) -> ModelState:
        keep = torch.ones(self._run.examples, dtype=torch.bool)
        keep[held_out] = False
        model = self._fit(Subset(self._run.training.dataset, keep.nonzero().flatten().tolist()))
        params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        objective = self._run.objective
        for name, known in objective.module.named_parameters():
            fitted = params.get(name)
            if fitted is None or fitted.shape != known.shape:
                raise ModelMismatchError(
                    f"parameter {name!r} of shape {tuple(known.shape)} is not in the model that fit= returned; make "
                    "the model that was recorded"
                )
            if name not in objective.vector.names and not torch.equal(fitted.detach().cpu(), known.detach().cpu()):
                raise ModelMismatchError(
                    f"parameter {name!r} is not trained and has other values in the model that fit= returned than in "
                    "the recorded run; make it with the same frozen weights"
                )
        return ModelState(params={n: params[n] for n in objective.vector.names}, buffers=buffers).clone()
