r"""The last epochs of the recorded run without a set of examples, and the paired difference extrapolated.

With :math:`\theta_T` the final model and :math:`\theta^{(k)}` what the last ``k`` recorded epochs lead to without the
set,

.. math:: \theta = \theta_T + r\,(\theta^{(k)} - \theta_T),

``r`` the smallest factor from 1 on at which the set is forgotten (multiplied by 1.5 until it is, then six bisections;
forward passes over the set alone). Both models have seen the same batches, so that the noise of SGD cancels in the
difference. There is no learning rate, no Hessian, and no data but the set's own.

``r`` is the method's guard: while it is small the line stays where the difference was measured; if it exceeds the
largest that is allowed, twice as many epochs are taken. Sets whose exact answer keeps them mostly right (random
subsets) run out of every bound and are refused: for these `CounterfactualReplay` is the answer.

Where training is noisy (a convolutional network at a constant rate), the difference at the last step is that of two
noisy models; ``difference="mean"`` averages it over the last epoch's steps first.

Cost: the ``k`` epochs, and about ten forward passes over the set. With relabelled examples, whose replay does not need
to be taken so far, the factor is chosen by `Corrected`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, ForgettingError, NonFiniteError
from lightning_sgdinf.replay import (
    OpenedRun,
    ReplaceLabels,
    epochs_of,
    epochs_of_learning,
    first_step_of,
    replace_second,
)
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.counterfactual import changes_of, expect_one_data_set, run_from
from lightning_sgdinf.updates.forgotten import Corrected, Forgotten, expect_examples
from lightning_sgdinf.updates.line import extrapolated, on_device, running_variances, shortest
from lightning_sgdinf.updates.mean_difference import with_mean_difference

FARTHEST = 1000.0
"""Factors above this are not tried: the set's answer need not change."""

LEARNING = 0.5
"""Epochs at the run's largest learning rate that ``epochs="auto"`` begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtrapolatedUpdate(Updated):
    """The outcome of `ExtrapolatedReplay`.

    Attributes:
        factor: ``r``, at least 1.
        last_epochs: ``k``, the epochs that were taken again at last.
        accuracy: On the set: of dropped examples as they are labelled, of relabelled ones with their new labels.
    """

    factor: float
    last_epochs: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class ExtrapolatedReplay:
    """The last epochs taken again with a selection, and the difference that makes, extrapolated.

    The selection drops examples, which are then forgotten, or relabels some, which are then corrected; not both.

    In a configuration file::

        _target_: lightning_sgdinf.updates.ExtrapolatedReplay

    Attributes:
        epochs: How many of the last epochs to begin with; ``"auto"``: the fewest whose learning rates add up to half an
            epoch at the run's largest rate. Twice as many are taken while the factor exceeds ``most``.
        most: The largest factor to accept, at least 1.
        forgotten: When dropped examples are forgotten.
        corrected: Chooses the factor for relabelled ones.
        replace_labels: How labels are changed in a batch.
        difference: ``"end"``: after the last step; ``"mean"``: averaged over the last epoch's steps and brought to the
            size that it has at the end. The latter costs an epoch more where not every state was kept.
    """

    epochs: int | Literal["auto"] = "auto"
    most: float = 3.0
    forgotten: Forgotten = field(default_factory=Forgotten)
    corrected: Corrected = field(default_factory=Corrected)
    replace_labels: ReplaceLabels = replace_second
    difference: Literal["end", "mean"] = "end"

    def __post_init__(self) -> None:
        if not self.most >= 1:
            raise ConfigurationError(f"ExtrapolatedReplay(most): expected a factor of at least 1, got {self.most}")
        if self.difference not in ("end", "mean"):
            raise ConfigurationError(
                f"ExtrapolatedReplay(difference): expected 'end' or 'mean', got {self.difference!r}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> ExtrapolatedUpdate:
        """Take the last epochs again and extrapolate, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, both drops and relabels, names an example that the data set does
                not have, or what it drops is forgotten already; or the run is not that of a classifier.
            ForgettingError: The factor exceeds its bound whatever is taken again: the set's answer need not change.
            StateNotStoredError: No state at or before the first of these epochs was kept.
            UnsupportedRunError: The steps cannot be taken again, or there is no data set.
        """
        expect_one_data_set(run.log)
        selection.check(run.examples)
        expect_examples([*selection.drop, *selection.relabel])
        if selection.drop and selection.relabel:
            raise ConfigurationError(
                f"expected a selection that drops or relabels, got one that drops {len(selection.drop)} and relabels "
                f"{len(selection.relabel)}: one factor does not serve both. CounterfactualReplay takes both."
            )
        first = epochs_of_learning(run.log, LEARNING) if self.epochs == "auto" else self.epochs
        first_step_of(run.log, first)
        with random_state.preserved():
            began = perf_counter()
            search = self._forget if selection.drop else self._correct
            return search(run, selection, first, lambda: perf_counter() - began)

    def _forget(
        self, run: OpenedRun, selection: Selection, epochs: int, clock: Callable[[], float]
    ) -> ExtrapolatedUpdate:
        watched = self.forgotten.on(run, selection.drop)
        cost, tried, every = 0.0, list[str](), epochs_of(run.log)
        while True:
            at, spent = self._line(run, selection, epochs)
            cost += spent
            factor = self._factor(lambda r, at=at: watched(at(r)) <= self.forgotten.accuracy)
            if factor is not None and (factor <= self.most if epochs < every else factor == 1.0):
                break
            tried.append(
                f"{epochs} of {every} epochs: r {f'above {FARTHEST:.0f}' if factor is None else f'= {factor:.3g}'}"
            )
            if factor is None or epochs == every:
                raise ForgettingError(self._refusal(len(selection.drop), tried))
            epochs = min(2 * epochs, every)
        state = at(factor)
        notes = [
            f"The last {epochs} epochs were taken again without the set; the difference was taken {factor:.3g} times."
        ]
        if tried:
            notes.append(f"Before, with r above {self.most:g}: {'; '.join(tried)}.")
        accuracy = watched(state)
        return ExtrapolatedUpdate(
            state=state,
            seconds=clock(),
            epochs=cost + watched.epochs,
            notes=tuple(notes),
            factor=factor,
            last_epochs=epochs,
            accuracy=accuracy,
        )

    def _correct(
        self, run: OpenedRun, selection: Selection, epochs: int, clock: Callable[[], float]
    ) -> ExtrapolatedUpdate:
        watched = self.corrected.on(run, selection)
        cost, every = 0.0, epochs_of(run.log)
        while True:
            at, spent = self._line(run, selection, epochs)
            cost += spent
            # The whole run with the new labels is the exact answer: there is nothing to extrapolate to.
            factor = 1.0 if epochs == every else self.corrected.best(at, watched)
            if factor <= self.most:
                break
            epochs = min(2 * epochs, every)
        state = at(factor)
        accuracy = watched[0](state)
        note = f"The last {epochs} epochs were taken again relabelled; the difference was taken {factor:.3g} times."
        return ExtrapolatedUpdate(
            state=state,
            seconds=clock(),
            epochs=cost + sum(one.epochs for one in watched),
            notes=(note,),
            factor=factor,
            last_epochs=epochs,
            accuracy=accuracy,
        )

    def _line(self, run: OpenedRun, selection: Selection, epochs: int) -> tuple[Callable[[float], ModelState], float]:
        """Return the models on the line, by their factor, and what its direction cost in epochs."""
        counterfactual = run_from(run, first_step_of(run.log, epochs))
        before = counterfactual.replayer.gradients
        weights, edit = changes_of(run, counterfactual, selection, self.replace_labels)
        if self.difference == "mean" and epochs < epochs_of(run.log):  # all epochs are the exact answer
            other = with_mean_difference(run, counterfactual, weights=weights, edit=edit)
        else:
            other = counterfactual.run(weights=weights, edit=edit)
        replayed = on_device(run, other)
        final, positive = on_device(run, run.model), running_variances(run.objective.module)
        cost = (counterfactual.replayer.gradients - before) / run.examples
        return lambda factor: extrapolated(final, replayed, factor, positive), cost

    def _factor(self, stops: Callable[[float], bool]) -> float | None:
        if stops(1.0):
            return 1.0
        try:
            return shortest(stops, low=1.0, high=1.5, growth=1.5, most=FARTHEST)
        except NonFiniteError:  # so far out that the model gives NaN
            return None

    def _refusal(self, count: int, tried: list[str]) -> str:
        return (
            f"the model without these {count} examples need not give other answers for them, so there is nothing to "
            f"extrapolate to ({'; '.join(tried)}; accepted up to {self.most:g}). Expected a set that only its own "
            "examples teach: a class, a backdoor. For other sets take the replay as it is: "
            "CounterfactualReplay(epochs=k) for the last k epochs, CounterfactualReplay('all') for the exact model."
        )
