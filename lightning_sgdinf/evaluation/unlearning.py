r"""Judging an unlearned model by the exact one: the only place that test data reach.

The exact model is the recorded run again without the set. What can be told apart from it at all is bounded by the
*floor*, the divergence of fresh trainings without the set (another initial model, another order): below it nothing
is to be seen in predictions. Distances of parameters and accuracies say much less: every method that forgets has an F1
near 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.cleansing import LogitsAndLabels, logits_and_labels
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import with_state


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers of a model to test examples.

    Attributes:
        log_probabilities: Float64 ``[n, C]``, CPU.
        labels: Int64 ``[n]``, CPU.
    """

    log_probabilities: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> float:
        """Return the share that is classified as labelled."""
        return float((self.log_probabilities.argmax(1) == self.labels).double().mean())

    @property
    def loss(self) -> float:
        """Return the mean cross entropy, in nats."""
        return float(F.nll_loss(self.log_probabilities, self.labels))

    @property
    def margins(self) -> Tensor:
        r"""Return :math:`\log p_y - \log(1 - p_y)` of each example, ``[n]``."""
        own = self.log_probabilities.gather(1, self.labels[:, None])[:, 0]
        others = self.log_probabilities.scatter(1, self.labels[:, None], -torch.inf).logsumexp(1)
        return own - others

    def share_of(self, label: int) -> float:
        """Return the share that is classified as a class."""
        return float((self.log_probabilities.argmax(1) == label).double().mean())

    def divergence_from(self, exact: Predictions) -> float:
        r"""Return the mean of :math:`KL(p_{exact} \| p)`, in nats."""
        expected = exact.log_probabilities
        # Where the exact model gives probability 0 there is nothing to be off by.
        terms = torch.where(expected.isneginf(), 0.0, expected.exp() * (expected - self.log_probabilities))
        return float(terms.sum(1).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningMeasures:
    """Comparison of an unlearned model with the exact one, on test data.

    Attributes:
        rest_accuracy: On the rest, in ``[0, 1]``.
        rest_loss: Mean cross entropy there.
        forgotten_accuracy: On what is forgotten.
        forgotten_loss: Mean cross entropy there.
        rest_divergence: Mean ``KL(exact || model)`` on the rest, in nats.
        forgotten_divergence: The same on what is forgotten.
    """

    rest_accuracy: float
    rest_loss: float
    forgotten_accuracy: float
    forgotten_loss: float
    rest_divergence: float
    forgotten_divergence: float

    @property
    def f1(self) -> float:
        """Return the harmonic mean of the rest's accuracy and the set's error: of methods that forget, all near 1."""
        kept, gone = self.rest_accuracy, 1 - self.forgotten_accuracy
        return 2 * kept * gone / (kept + gone) if kept + gone > 0 else 0.0


class UnlearningJudge:
    """Judges models that should have forgotten a set.

    Args:
        model: Takes the states; its own values are put back after each.
        rest: Test data of what is to be kept.
        forgotten: Test data of what is to be forgotten: of the class, or, for a random subset, its own examples.
        exact: The model of the recorded run without the set.
        fresh: Models of fresh trainings without the set, for the floor.
        forward: What the model says of a batch; see `lightning_sgdinf.cleansing.LogitsAndLabels`.

    Attributes:
        floor: Mean divergence of the fresh models on the rest and on what is forgotten; ``None`` without any.

    Raises:
        ConfigurationError: A loader is empty, or logits and labels do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        rest: Iterable[Any],
        forgotten: Iterable[Any],
        *,
        exact: ModelState,
        fresh: Sequence[ModelState] = (),
        forward: LogitsAndLabels = logits_and_labels,
    ) -> None:
        self._model, self._rest, self._forgotten, self._forward = model, rest, forgotten, forward
        self._exact = self.predictions(exact)
        own = [self.judge(state) for state in fresh]
        self.floor: tuple[float, float] | None = None
        if own:
            kept, gone = sum(m.rest_divergence for m in own), sum(m.forgotten_divergence for m in own)
            self.floor = (kept / len(own), gone / len(own))

    def judge(self, state: ModelState) -> UnlearningMeasures:
        """Measure a model.

        Raises:
            NonFiniteError: It gives NaN.
        """
        rest, forgotten = self.predictions(state)
        return UnlearningMeasures(
            rest_accuracy=rest.accuracy,
            rest_loss=rest.loss,
            forgotten_accuracy=forgotten.accuracy,
            forgotten_loss=forgotten.loss,
            rest_divergence=rest.divergence_from(self._exact[0]),
            forgotten_divergence=forgotten.divergence_from(self._exact[1]),
        )

    def predictions(self, state: ModelState) -> tuple[Predictions, Predictions]:
        """Return what a model says of the rest and of what is forgotten."""
        with with_state(self._model, state):
            rest = predict(self._model, self._rest, self._forward)
            return rest, predict(self._model, self._forgotten, self._forward)

    def confusion(self, state: ModelState) -> Tensor:
        """Return the counts of test examples by label and answer, int64 ``[C, C]``."""
        counts = torch.zeros(0, dtype=torch.int64)
        for part in self.predictions(state):
            classes = part.log_probabilities.shape[1]
            if not len(counts):
                counts = torch.zeros(classes, classes, dtype=torch.int64)
            places = part.labels * classes + part.log_probabilities.argmax(1)
            counts += torch.bincount(places, minlength=classes**2).view(classes, classes)
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class BackdoorMeasures:
    """The state of a backdoor, on test data.

    Attributes:
        clean_accuracy: On clean examples.
        triggered_accuracy: On triggered examples, by their true labels.
        attack_rate: Share of triggered examples that are given the attacker's label.
        divergence: Mean ``KL(exact || model)`` on triggered examples, in nats.
    """

    clean_accuracy: float
    triggered_accuracy: float
    attack_rate: float
    divergence: float


class BackdoorJudge:
    """Judges models whose backdoor should be closed.

    Args:
        model: Takes the states; its own values are put back after each.
        clean: Clean test data.
        triggered: Test data with the trigger and their true labels, none of them the attacker's.
        target: The attacker's label.
        exact: The model of the recorded run with true labels, or without the triggered examples.
        forward: As for `UnlearningJudge`.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Iterable[Any],
        triggered: Iterable[Any],
        *,
        target: int,
        exact: ModelState,
        forward: LogitsAndLabels = logits_and_labels,
    ) -> None:
        self._judge = UnlearningJudge(model, clean, triggered, exact=exact, forward=forward)
        self._target = target
        self._exact = self._judge.predictions(exact)[1]

    def judge(self, state: ModelState) -> BackdoorMeasures:
        """Measure a model.

        Raises:
            NonFiniteError: It gives NaN.
        """
        clean, triggered = self._judge.predictions(state)
        return BackdoorMeasures(
            clean_accuracy=clean.accuracy,
            triggered_accuracy=triggered.accuracy,
            attack_rate=triggered.share_of(self._target),
            divergence=triggered.divergence_from(self._exact),
        )


def predict(model: nn.Module, loader: Iterable[Any], forward: LogitsAndLabels = logits_and_labels) -> Predictions:
    """Return what a model says of the examples of a loader, in eval mode, leaving no trace in it.

    Raises:
        ConfigurationError: The loader is empty, or logits and labels do not fit together.
        NonFiniteError: The model gives NaN.
    """
    modes = {part: part.training for part in model.modules()}
    answers: list[tuple[Tensor, Tensor]] = []
    try:
        model.eval()
        with random_state.preserved(), torch.no_grad():
            for batch in loader:
                logits, labels = forward(model, batch)
                if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
                    raise ConfigurationError(
                        f"expected logits [B, C] and whole labels [B], got {list(logits.shape)} and "
                        f"{list(labels.shape)} of {labels.dtype}; give forward=, a function of model and batch"
                    )
                answers.append((logits.to("cpu", torch.float64).log_softmax(1), labels.cpu().long()))
    finally:
        for part, training in modes.items():
            part.training = training
    if not answers:
        raise ConfigurationError("expected a loader with one example or more to judge by, got an empty one")
    log_probabilities = torch.cat([log for log, _ in answers])
    if bool(log_probabilities.isnan().any()):
        raise NonFiniteError("the model gives NaN for a test example: it diverged")
    return Predictions(log_probabilities, torch.cat([labels for _, labels in answers]))
