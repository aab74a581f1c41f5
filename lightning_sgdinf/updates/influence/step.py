"""One step from the final model along an influence direction: the generalized influence functions as an update.

Cost: the solver's products with the curvature of some retained examples, two example gradients each, and the forward
passes that choose the length. The record is not used: where there is one, `lightning_sgdinf.updates.ExtrapolatedReplay`
is nearer to the exact model for less; no step of this kind repairs a backdoor without loss of accuracy.

Buffers stay as they are: running statistics of batch normalisation know of the set what they knew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, ReplaceLabels, replace_second
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.forgotten import expect_examples
from lightning_sgdinf.updates.influence.directions import GeneralizedDirection, InfluenceDirection
from lightning_sgdinf.updates.influence.problem import influence_problem
from lightning_sgdinf.updates.influence.step_length import StepLength, StepToTheStop
from lightning_sgdinf.updates.line import on_device
from lightning_sgdinf.updates.masks import HighestUnits, ParameterCriterion


@dataclass(frozen=True, slots=True)
class InfluenceStep:
    """A step along an influence direction in some of the parameters.

    In a configuration file::

        _target_: lightning_sgdinf.updates.influence.InfluenceStep
        direction:
          _target_: lightning_sgdinf.updates.influence.FreezingDirection
        parameters:
          _target_: lightning_sgdinf.updates.masks.HighestUnits
          ratio: 0.05

    Attributes:
        direction: Computes the natural step.
        parameters: Chooses the parameters that may change.
        length: Chooses the length of the step.
        examples: Retained training examples that the curvature is of; ``None`` for all.
        seed: Of their choice.
        batch_size: Examples per pass; 1 for losses that are not the mean over a batch.
        replace_labels: How labels are changed in a batch.
    """

    direction: InfluenceDirection = field(default_factory=GeneralizedDirection)
    parameters: ParameterCriterion = field(default_factory=HighestUnits)
    length: StepLength = field(default_factory=StepToTheStop)
    examples: int | None = 512
    seed: int = 0
    batch_size: int = 500
    replace_labels: ReplaceLabels = replace_second

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.examples is not None and self.examples < 1):
            raise ConfigurationError(
                f"InfluenceStep: expected batch_size >= 1 and examples >= 1 or None, got {self.batch_size} and "
                f"{self.examples}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Take the step, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, both drops and relabels, names an example that the data set does
                not have, leaves none, or what it drops is forgotten already; or the model has no layer to choose from.
            DivergenceError: The curvature is negative along a direction, or the solver got nowhere.
            ForgettingError: No step forgets the set.
        """
        selection.check(run.examples)
        expect_examples([*selection.drop, *selection.relabel])
        began, model = perf_counter(), on_device(run, run.model)
        with random_state.seeded(self.seed):
            mask = self.parameters.choose(run, model, selection.drop or tuple(selection.relabel))
            problem = influence_problem(
                run,
                selection,
                model,
                mask,
                examples=self.examples,
                seed=self.seed,
                batch_size=self.batch_size,
                replace_labels=self.replace_labels,
            )
            step = self.direction.solve(problem)
            chosen = self.length.take(run, selection, model, step)
        return Updated(
            state=chosen.state,
            seconds=perf_counter() - began,
            epochs=problem.gradients / run.examples + chosen.epochs,
            notes=(
                f"A step of {chosen.length:.3g} times the natural one along {type(self.direction).__name__}, in "
                f"{int((step != 0).sum())} of {step.numel()} parameters.",
            ),
        )
