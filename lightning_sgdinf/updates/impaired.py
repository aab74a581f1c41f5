"""The last epochs of the recorded run without a set of examples, from a state that was made to forget it first.

At the recorded state before these epochs, a step along the gradient of the set's loss in some of the parameters goes
just far enough that the set is forgotten; the optimizer's memory is emptied; then the recorded steps are taken again
without the set, which repairs what the step spoilt. Where the last epochs have small learning rates and are several, it
ends nearer to the accuracy of the exact model than `lightning_sgdinf.updates.ExtrapolatedReplay`; with one epoch it is
behind.

Cost: the epochs, a gradient of the set and about fifteen forward passes over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import CounterfactualRun, OpenedRun, audit_steps, epochs_of_learning, first_step_of
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.counterfactual import expect_one_data_set, run_from
from lightning_sgdinf.updates.extrapolated import LEARNING
from lightning_sgdinf.updates.forgotten import Forgotten, expect_examples
from lightning_sgdinf.updates.influence import PlainGradient, StepToTheStop, influence_problem
from lightning_sgdinf.updates.line import on_device
from lightning_sgdinf.updates.masks import HighestUnits, ParameterCriterion


@dataclass(frozen=True, slots=True)
class ImpairedReplay:
    """A step that forgets, and the last epochs taken again without the set; see the module's text.

    In a configuration file::

        _target_: lightning_sgdinf.updates.ImpairedReplay
        epochs: 3

    Attributes:
        epochs: How many of the last epochs to take again; ``"auto"``: the fewest whose learning rates add up to half an
            epoch at the run's largest rate.
        parameters: Chooses the parameters that the step may change.
        forgotten: How far the step goes.
    """

    epochs: int | Literal["auto"] = "auto"
    parameters: ParameterCriterion = field(default_factory=HighestUnits)
    forgotten: Forgotten = field(default_factory=Forgotten)

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Impair and replay, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                what it drops is forgotten already.
            ForgettingError: No step forgets the set.
            StateNotStoredError: No state at or before the first of these epochs was kept.
            UnsupportedRunError: The steps cannot be taken again, or there is no data set.
        """
        expect_one_data_set(run.log)
        selection.check(run.examples)
        expect_examples(selection.drop)
        if selection.relabel:
            raise ConfigurationError("expected a selection that drops, got new labels; CounterfactualReplay takes them")
        epochs = epochs_of_learning(run.log, LEARNING) if self.epochs == "auto" else self.epochs
        recorded = run_from(run, first_step_of(run.log, epochs))
        with random_state.preserved():
            began, before = perf_counter(), recorded.replayer.gradients
            weights = selection.weights(run.examples)
            audit_steps(run, recorded.first_step)
            start = on_device(run, recorded.start.state)
            mask = self.parameters.choose(run, start, selection.drop)
            problem = influence_problem(run, selection, start, mask)
            step = PlainGradient().solve(problem)
            impaired = StepToTheStop(self.forgotten).take(run, selection, start, step)
            again = CounterfactualRun(run, recorded.first_step, start=replace(impaired.state, optimizer={}))
            end = again.take(again.start, again.first_step, again.last_step, weights=weights)
            averaged = run.log.average is not None
            state = again.averaged(end, recorded.base if averaged else None)
        gradients = again.replayer.gradients + recorded.replayer.gradients - before + problem.gradients
        return Updated(
            state=state,
            seconds=perf_counter() - began,
            epochs=gradients / run.examples + impaired.epochs,
            notes=(
                f"The last {epochs} epochs were taken again without the set, after a step of {impaired.length:.3g} "
                f"times its gradient in {int((step != 0).sum())} of {step.numel()} parameters.",
            ),
        )
