"""The length of a step along a direction: up to the stop, without test data, or the direction's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightning_sgdinf.errors import ForgettingError, NonFiniteError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.forgotten import Corrected, Forgotten
from lightning_sgdinf.updates.line import moved, shortest

FIRST, FARTHEST = 2e-3, 4.0
"""The first step to try and the largest, in norms of the parameters."""


@dataclass(frozen=True, slots=True)
class ChosenStep:
    """A step that was taken.

    Attributes:
        state: The model after it.
        length: In natural steps.
        epochs: What the choice cost.
    """

    state: ModelState
    length: float
    epochs: float


class StepLength(Protocol):
    """Takes a step of its own choice along a direction. A frozen value."""

    def take(self, run: OpenedRun, selection: Selection, model: ModelState, step: Tensor) -> ChosenStep:
        """Return the step.

        Args:
            run: The run.
            selection: Drops or relabels examples.
            model: Where to begin.
            step: The natural step, ``[P]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class NaturalStep:
    """The natural step as it is.

    It is the right size for random subsets of a converged model. It never makes a network forget a class.
    """

    def take(self, run: OpenedRun, selection: Selection, model: ModelState, step: Tensor) -> ChosenStep:
        """Take it; see `StepLength.take`."""
        del selection
        return ChosenStep(moved(model, by_name(run, step), 1.0), 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class StepToTheStop:
    """The shortest step at which the set is forgotten or, with new labels, the step that corrects it best.

    Attributes:
        forgotten: When dropped examples are forgotten.
        corrected: Chooses the length for relabelled ones.
    """

    forgotten: Forgotten = field(default_factory=Forgotten)
    corrected: Corrected = field(default_factory=Corrected)

    def take(self, run: OpenedRun, selection: Selection, model: ModelState, step: Tensor) -> ChosenStep:
        """Take it; see `StepLength.take`.

        Raises:
            ConfigurationError: Nothing is to be forgotten.
            ForgettingError: No step up to four norms of the parameters forgets the set.
        """
        size = torch.cat([v.reshape(-1) for n, v in model.params.items() if n in run.objective.vector.names]).norm()
        natural = float(size / step.norm().clamp_min(torch.finfo(step.dtype).tiny))
        direction = by_name(run, step)

        def at(norms: float) -> ModelState:
            return moved(model, direction, norms * natural)

        if selection.drop:
            watched = self.forgotten.on(run, selection.drop)
            length, cost = self._shortest(lambda norms: watched(at(norms)) <= self.forgotten.accuracy), watched.epochs
            if length is None:
                raise ForgettingError(
                    f"no step up to {FARTHEST:g} times the norm of the parameters makes the model forget these "
                    f"{len(selection.drop)} examples (accuracy on them at most {100 * self.forgotten.accuracy:.1f} %): "
                    "the direction does not lead there. Take ExtrapolatedReplay, or NaturalStep() for a random subset."
                )
        else:
            pair = self.corrected.on(run, selection)
            norms = [FIRST * 1.5**power for power in range(18)]
            length = self.corrected.best(at, pair, norms)
            cost = sum(one.epochs for one in pair)
        return ChosenStep(at(length), length * natural, cost)

    def _shortest(self, stops: Callable[[float], bool]) -> float | None:
        try:
            return shortest(stops, low=0.0, high=FIRST, growth=2.0, most=FARTHEST)
        except NonFiniteError:
            return None


def by_name(run: OpenedRun, step: Tensor) -> dict[str, Tensor]:
    """Return a step ``[P]`` by parameter name, in the parameters' shapes."""
    vector = run.objective.vector
    return dict(zip(vector.names, vector.split(step), strict=True))
