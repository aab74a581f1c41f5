"""Criteria for a set of examples to be forgotten, or corrected: judged on training examples alone.

Neither criterion can be given validation or test data, so that nothing is ever chosen by what a result is judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.set_accuracy import SetAccuracy

FACTORS = tuple(1.15**power for power in range(12))
"""Of the line that `Corrected` tries, from the difference as it was measured to 4.65 times it."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A set is forgotten when the model classifies hardly any of its examples as they are labelled.

    It is for sets whose answer must change: a class, the triggered images of a backdoor (whose trigger label a model
    without them still gives by chance: ``accuracy=0.1`` of ten classes). For a random subset of a class the exact
    answer keeps most of them right, and no method that goes on until they are wrong is near it.

    Attributes:
        accuracy: The largest accuracy on the set, in ``[0, 1)``.
    """

    accuracy: float = 0.004

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy < 1:
            raise ConfigurationError(f"Forgotten(accuracy): expected a value in [0, 1), got {self.accuracy}")

    def on(self, run: OpenedRun, ids: Sequence[int]) -> SetAccuracy:
        """Return the accuracy to watch, after making sure that the run's model has something to forget.

        Raises:
            ConfigurationError: The set is empty, or is forgotten already.
        """
        expect_examples(ids)
        watched = SetAccuracy(run, tuple(sorted(ids)))
        before = watched(run.model)
        if before <= self.accuracy:
            raise ConfigurationError(
                f"expected a set that the model knows, got one of {len(ids)} examples of which it classifies "
                f"{100 * before:.1f} % as labelled: they count as forgotten already (at most {100 * self.accuracy:.1f} "
                "%). Check the ids; CounterfactualReplay gives the run without them all the same."
            )
        return watched


@dataclass(frozen=True, slots=True)
class Corrected:
    """Relabelled examples are corrected when the model gives them their new labels and keeps those of the others.

    Of the points of a line that with the largest harmonic mean of the accuracy on relabelled examples (new labels) and
    on examples of the rest (their own) is taken.

    Attributes:
        examples: Of either kind that are looked at, at most; at least 1.
        seed: Of their choice.
    """

    examples: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ConfigurationError(f"Corrected(examples): expected at least 1, got {self.examples}")

    def on(self, run: OpenedRun, selection: Selection) -> tuple[SetAccuracy, SetAccuracy]:
        """Return the accuracies to watch: on relabelled examples and on others."""
        generator = np.random.default_rng(self.seed)
        changed = self._some(generator, np.array(sorted(selection.relabel)))
        rest = np.setdiff1d(np.arange(run.examples), [*selection.relabel, *selection.drop])
        if not len(rest):
            raise ConfigurationError(f"expected examples that keep their labels, got none of {run.examples}")
        return SetAccuracy(run, changed, selection.relabel), SetAccuracy(run, self._some(generator, rest))

    def best(
        self,
        at: Callable[[float], ModelState],
        watched: tuple[SetAccuracy, SetAccuracy],
        factors: Sequence[float] = FACTORS,
    ) -> float:
        """Return the best of some factors; the first of equals.

        Args:
            at: The model at a factor.
            watched: From `on`.
            factors: Points of the line.
        """
        means = [_harmonic(*(accuracy(at(factor)) for accuracy in watched)) for factor in factors]
        return factors[int(np.argmax(means))]

    def _some(self, generator: np.random.Generator, ids: np.ndarray) -> tuple[int, ...]:
        chosen = generator.permutation(ids)[: self.examples]
        return tuple(int(j) for j in np.sort(chosen))


def expect_examples(ids: Sequence[int]) -> None:
    """Refuse an empty set.

    Raises:
        ConfigurationError: It is empty.
    """
    if not len(ids):
        raise ConfigurationError(
            "expected a set of examples to forget, Selection(drop=ids), or to correct, Selection(relabel={id: label}), "
            "got an empty selection"
        )


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other > 0 else 0.0
