"""Judging a repaired model: test loss and accuracy, and what became of failures that nobody looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lightning_sgdinf.cleansing import LogitsAndLabels, logits_and_labels
from lightning_sgdinf.evaluation.unlearning import Predictions, predict
from lightning_sgdinf.replay import ClassProbabilities
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import with_state
from lightning_sgdinf.updates.repair import FailureChanges, Failures


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairMeasures:
    """Measures of a repaired model; see `FailureChanges` for those of failures.

    Attributes:
        test_loss: Mean cross entropy on test data, in nats.
        test_accuracy: In ``[0, 1]``.
        failures: Held-out failures before.
        fixed: Of these, right now.
        broken: Held-out examples that were right and are wrong now.
        net: Fixed less broken.
        net_share: As a part of the failures.
        fixed_share: Fixed as a part of the failures: mostly churn, to be read beside a random set's.
    """

    test_loss: float
    test_accuracy: float
    failures: int
    fixed: int
    broken: int
    net: int
    net_share: float
    fixed_share: float

    def to_json(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)


class RepairJudge:
    """Judges repaired models on test data and on the half of the validation set that nobody looked at.

    Args:
        model: Takes the states; its own values are put back after each.
        validation: Validation data, in the order of the ids of the failures.
        test: Test data.
        before: The model whose failures these are.
        failures: Halves and failures.
        forward: What the model says of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        validation: Iterable[Any],
        test: Iterable[Any],
        *,
        before: ModelState,
        failures: Failures,
        forward: LogitsAndLabels = logits_and_labels,
    ) -> None:
        self._model, self._validation, self._test, self._forward = model, validation, test, forward
        self._failures = failures
        self._before = self.answers(before)[0]

    def judge(self, state: ModelState) -> RepairMeasures:
        """Measure a model.

        Raises:
            NonFiniteError: It gives NaN.
        """
        validation, test = self.answers(state)
        changes: FailureChanges = self._failures.judge(_as_probabilities(self._before), _as_probabilities(validation))
        return RepairMeasures(
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            failures=changes.failures,
            fixed=changes.fixed,
            broken=changes.broken,
            net=changes.net,
            net_share=changes.net_share,
            fixed_share=changes.fixed / changes.failures if changes.failures else 0.0,
        )

    def answers(self, state: ModelState) -> tuple[Predictions, Predictions]:
        """Return what a model says of the validation and of the test data."""
        with with_state(self._model, state):
            validation = predict(self._model, self._validation, self._forward)
            return validation, predict(self._model, self._test, self._forward)


def _as_probabilities(answers: Predictions) -> ClassProbabilities:
    return ClassProbabilities(answers.log_probabilities, answers.labels)
