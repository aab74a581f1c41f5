r"""Wrong labels by margins of a run that has not seen them: score, replay, score, replay, each replay exact.

The margin of a label along the recorded run (`lightning_sgdinf.baselines.AreaUnderMargin`) is that of a model that was
trained on the wrong labels, too. A recorded run can be taken again without the suspects, exactly and on the same
batches, and *its* margins tell wrong labels from right ones better: of those left out, out of sample. So each round
ranks all examples by the margins along the last replay, tries some numbers of suspects by one replay each, and keeps
the number with the least loss on the choosing half of the validation set, a mean over states at the end of the replay:
that of its last state alone depends on where the last steps threw it. At last the suspects that the cleaned run is sure
about get its label, the others are left out; how sure is chosen likewise.

Cost: ``rounds * len(fractions)`` replays, and one for each of ``thresholds``. Nothing but training data and the half
that may be chosen by is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, class_probabilities, lead
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection, Trial
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.counterfactual import changes_of, run_from
from lightning_sgdinf.updates.repair import Failures, choosing_loss


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The outcome of a search.

    Attributes:
        scores: The last margins, a ranking: the most suspect first.
        selection: What to leave out and what to relabel; its trace has every number that was tried.
        losses: Of the choosing half, a mean over states at the end of a run: of the run as it was, then the best of
            every round and of the labels, in nats.
    """

    scores: Scores
    selection: Selection
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IteratedMargins:
    """Margins of replays without the suspects, round by round; see the module's text.

    In a configuration file::

        _target_: lightning_sgdinf.cleansing.IteratedMargins
        rounds: 2

    Attributes:
        rounds: At least 1.
        fractions: Of the training set, numbers of suspects that are tried, increasing, in ``(0, 1)``.
        thresholds: Probabilities from which on a suspect gets the cleaned run's label, in ``(0, 1]``; beside them none
            gets one.
        states: Of the end of each run that margins and losses are averaged over, at least 1.
        share: Of the run that they are taken from, in ``(0, 1]``.
    """

    rounds: int = 2
    fractions: Sequence[float] = (0.03, 0.06, 0.1, 0.15, 0.22, 0.32)
    thresholds: Sequence[float] = (0.5, 0.8, 0.95)
    states: int = 4
    share: float = 0.3

    def __post_init__(self) -> None:
        fractions = tuple(self.fractions)
        if not fractions or list(fractions) != sorted(set(fractions)) or not 0 < fractions[0] <= fractions[-1] < 1:
            raise ConfigurationError(
                f"IteratedMargins(fractions): expected increasing parts in (0, 1), got {fractions}"
            )
        if any(not 0 < t <= 1 for t in self.thresholds):
            raise ConfigurationError(
                f"IteratedMargins(thresholds): expected probabilities in (0, 1], got {tuple(self.thresholds)}"
            )
        if self.rounds < 1 or self.states < 1 or not 0 < self.share <= 1:
            raise ConfigurationError(
                f"IteratedMargins: expected rounds and states >= 1 and a share in (0, 1], got {self.rounds}, "
                f"{self.states} and {self.share}"
            )

    def search(self, run: OpenedRun, failures: Failures) -> SearchResult:
        """Search for what to leave out and what to relabel.

        Args:
            run: The run of a classifier, with its first state in the record.
            failures: Halves of its validation set; the one to choose by is looked at.

        Raises:
            ConfigurationError: The run is not that of a classifier.
            StateNotStoredError: Its first state was not kept.
        """
        best, trace = Selection(), []
        known = self._along(run, best)
        losses = [self._loss(run, failures, best)]
        least = losses[0]
        for _ in range(self.rounds):
            order = known.margins.argsort(stable=True)
            tried = []
            for fraction in self.fractions:
                number = max(1, round(fraction * run.examples))
                selection = Selection(drop=tuple(order[:number].tolist()))
                tried.append((self._loss(run, failures, selection), selection))
                trace.append(Trial(number, tried[-1][0]))
            loss, selection = min(tried, key=lambda pair: pair[0])
            if not loss < least:
                break
            best, least = selection, loss
            losses.append(loss)
            known = self._along(run, best)
        selection, least = self._with_labels(run, failures, known, best, least, trace)
        losses.append(least)
        chosen = Selection(
            drop=selection.drop,
            relabel=selection.relabel,
            reason=f"margins of replays, {len(losses) - 2} rounds",
            trace=tuple(trace),
        )
        scores = Scores(values=known.margins[:, None], queries=("margin along a cleaned replay",), better=("order",))
        return SearchResult(scores, chosen, tuple(losses))

    def _with_labels(
        self,
        run: OpenedRun,
        failures: Failures,
        known: _Known,
        best: Selection,
        least: float,
        trace: list[Trial],
    ) -> tuple[Selection, float]:
        """Return the selection in which suspects get the cleaned run's label where it is sure, if that is better."""
        sure, answers = known.probabilities.max(1)
        chosen = best
        for threshold in self.thresholds:
            certain = {j: int(answers[j]) for j in best.drop if float(sure[j]) >= threshold}
            if not certain:
                continue
            # Where the cleaned run agrees with the label, the example was suspected wrongly, and stays.
            relabel = {j: label for j, label in certain.items() if label != int(known.labels[j])}
            selection = Selection(drop=tuple(j for j in best.drop if j not in certain), relabel=relabel)
            loss = self._loss(run, failures, selection)
            trace.append(Trial(len(selection), loss))
            if loss < least:
                chosen, least = selection, loss
        return chosen, least

    def _loss(self, run: OpenedRun, failures: Failures, selection: Selection) -> float:
        """Return the mean loss of the choosing half over states at the end of the run with a selection."""
        losses = [choosing_loss(run, failures, state) for state in self._states(run, selection)]
        return sum(losses) / len(losses)

    def _along(self, run: OpenedRun, selection: Selection) -> _Known:
        """Return what the run with a selection says of every example."""
        examples, margins, probabilities = run.training.plain(), [], []
        labels = torch.zeros(0, dtype=torch.int64)
        for state in self._states(run, selection):
            with random_state.preserved():
                answers = class_probabilities(run, examples, state)
            margins.append(lead(answers.log_values, answers.labels, alone=-torch.inf))
            probabilities.append(answers.values)
            labels = answers.labels
        return _Known(torch.stack(margins).mean(0), torch.stack(probabilities).mean(0), labels)

    def _states(self, run: OpenedRun, selection: Selection) -> Iterator[ModelState]:
        """Yield states at the end of the run with a selection, evenly spaced up to the last one."""
        counterfactual, total = run_from(run, 0), len(run.log)
        part = round(self.share * total)
        marks = sorted({total - part + round(part * (k + 1) / self.states) for k in range(self.states)} - {0})
        course, at = counterfactual.start, 0
        for mark in marks:
            with random_state.preserved():
                weights, edit = changes_of(run, counterfactual, selection)
                course, at = counterfactual.take(course, at, mark, weights=weights, edit=edit), mark
            yield course.state


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """Mean margins ``[N]`` and class probabilities ``[N, C]`` along a run, and the given labels ``[N]``."""

    margins: Tensor
    probabilities: Tensor
    labels: Tensor
