"""The interface of a model update: a trained run and a selection in, another model out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """The outcome of an update.

    Attributes:
        state: The model: its trained parameters and buffers; put it into a module with `load_state`.
        seconds: Wall time, at least 0.
        epochs: Passes over the training set: example gradients that were computed, over ``N``; ``None`` if unknown.
        notes: Sentences a reader must know.
    """

    state: ModelState
    seconds: float
    epochs: float | None = None
    notes: tuple[str, ...] = ()


@runtime_checkable
class ModelUpdate(Protocol):
    """A way to change a trained model.

    Implementations are frozen values: what several selections have in common is kept with the run (``run.once``).
    `lightning_sgdinf.testing.ModelUpdateSuite` checks one.
    """

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Return the model that a selection leads to.

        The borrowed module, the record and the random generators are afterwards as they were.

        Args:
            run: The recorded run.
            selection: Examples to leave out or to relabel; an empty one asks for the model as the method makes it of
                everything.

        Raises:
            ConfigurationError: The selection names an example that the run's data set does not have; or it is empty and
                the method has no use for that.
        """
        ...


Retraining: TypeAlias = Callable[[Selection], Updated]
"""An update of one run, e.g. ``functools.partial(update.update, run)``: a selection in, the model it leads to out."""
