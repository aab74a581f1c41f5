"""Failures of a model on validation data, halved before anything is looked at.

One half is for asking and choosing, the other for judging. Halving comes first: what is left of a validation set after
its failures were taken out is right by construction, and whoever chooses on it prefers to change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.query import SubsetLoss
from lightning_sgdinf.replay import ClassProbabilities, OpenedRun, class_probabilities
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.validation_data import halve


@dataclass(frozen=True, slots=True)
class Failures:
    """A validation set in two halves, and the examples of each that a model gets wrong.

    Attributes:
        choosing: Ids of the half that is asked about and chosen by, increasing.
        judging: Ids of the other half, increasing; nothing but a judgement may look at them.
        blamed: Ids of failures in the half ``choosing``: what a query asks about.
        held_out: Ids of failures in the half ``judging``: what a repair should fix, too.

    Raises:
        ConfigurationError: The halves are not halves of one validation set, or failures are not of their half.
    """

    choosing: tuple[int, ...]
    judging: tuple[int, ...]
    blamed: tuple[int, ...]
    held_out: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.choosing) + len(self.judging)
        if sorted((*self.choosing, *self.judging)) != list(range(count)) or abs(count - 2 * len(self.judging)) > 1:
            raise ConfigurationError(
                f"Failures: expected two halves of one validation set, got {len(self.choosing)} and "
                f"{len(self.judging)} ids; make them with Failures.halves(run). To choose by what is left when "
                "failures are taken out is to choose by examples that are right by construction"
            )
        for name, failing, half in (("blamed", self.blamed, self.choosing), ("held_out", self.held_out, self.judging)):
            outside = sorted(set(failing) - set(half))
            if outside or len(set(failing)) != len(failing):
                raise ConfigurationError(
                    f"Failures({name}): expected examples of its half, each once, got {outside[:5] or 'repeats'}; make "
                    "them with Failures.halves(run)"
                )

    @classmethod
    def halves(cls, run: OpenedRun, *, seed: int = 0, model: ModelState | None = None) -> Failures:
        """Halve a run's validation set, class by class, and note what its model gets wrong.

        Args:
            run: The run of a classifier, with validation data.
            seed: Of the halves.
            model: Parameters and buffers; those of the final model if ``None``.

        Raises:
            ConfigurationError: The run is not that of a classifier, has fewer than two validation examples, or the
                model gets none wrong in the half that is asked about.
        """
        with random_state.preserved():
            return cls.of(class_probabilities(run, run.validation, model), seed=seed)

    @classmethod
    def of(cls, answers: ClassProbabilities, *, seed: int = 0) -> Failures:
        """Halve the examples of some answers; see `halves`.

        Args:
            answers: Of a model to the whole validation set.
            seed: Of the halves.
        """
        wrong = answers.log_values.argmax(1) != answers.labels
        split = halve(len(wrong), seed=seed, labels=answers.labels)
        blamed, held_out = (half[wrong[half]].tolist() for half in (split.scoring, split.choosing))
        if not blamed:
            raise ConfigurationError(
                f"Failures: the model gets none of {len(split.scoring)} validation examples wrong, so there is nothing "
                "to ask about; take a larger validation set"
            )
        return cls(tuple(split.scoring.tolist()), tuple(split.choosing.tolist()), tuple(blamed), tuple(held_out))

    @property
    def query(self) -> SubsetLoss:
        """Return the mean loss of the failures that are asked about, as a query."""
        return SubsetLoss(self.blamed)

    @property
    def whole_half(self) -> SubsetLoss:
        """Return the mean loss of the whole half that is asked about, right answers included, as a query."""
        return SubsetLoss(self.choosing)

    def judge(self, before: ClassProbabilities, after: ClassProbabilities) -> FailureChanges:
        """Compare two models' answers on the half that nobody looked at.

        Args:
            before: Of the model whose failures these are, to the whole validation set.
            after: Of the repaired one.
        """
        ids = torch.tensor(self.judging)
        right = [(a.log_values[ids].argmax(1) == a.labels[ids]) for a in (before, after)]
        return FailureChanges(
            failures=int((~right[0]).sum()),
            fixed=int((~right[0] & right[1]).sum()),
            broken=int((right[0] & ~right[1]).sum()),
            examples=len(ids),
        )


@dataclass(frozen=True, slots=True)
class FailureChanges:
    """Changes of a model's answers on held-out examples.

    Most of what any retraining "fixes" is churn at the border between classes: it breaks about as much. The net is what
    counts, beside that of a random set of equal size.

    Attributes:
        failures: Examples that were wrong.
        fixed: Of these, right now.
        broken: Right before and wrong now.
        examples: All.
    """

    failures: int
    fixed: int
    broken: int
    examples: int

    @property
    def net(self) -> int:
        """Return fixed less broken: examples."""
        return self.fixed - self.broken

    @property
    def net_share(self) -> float:
        """Return the net as a part of the failures; 0 without any."""
        return self.net / self.failures if self.failures else 0.0


def choosing_loss(run: OpenedRun, failures: Failures, model: ModelState) -> float:
    """Return the mean negative log-likelihood of the choosing half at a model, in nats; infinite where it gives NaN."""
    half = run.validation.subset(torch.tensor(failures.choosing))
    try:
        with random_state.preserved():
            answers = class_probabilities(run, half, model)
    except NonFiniteError:
        return float("inf")
    return -float(answers.log_values.gather(1, answers.labels[:, None]).mean())
