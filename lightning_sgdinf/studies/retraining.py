"""The ways to train again that a configuration names under ``retrain``: any `ModelUpdate`, and `Scratch`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lightning_sgdinf.cleansing import default_grid
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import FreshTraining, ModelUpdate, Retraining


@dataclass(frozen=True)
class Scratch:
    """A new run on the cleansed data set: `FreshTraining` by the study's own training, which no configuration can name.

    In a configuration::

        _target_: lightning_sgdinf.studies.Scratch
    """


Retrain: TypeAlias = "ModelUpdate | Scratch"


def model_update(retrain: Retrain, fit: Callable[[Any], nn.Module]) -> ModelUpdate:
    """Return the update that a configuration means.

    Args:
        retrain: As configured.
        fit: Trains a new model on a data set, as the study trains.
    """
    return FreshTraining(fit) if isinstance(retrain, Scratch) else retrain


@contextmanager
def shown(retraining: Retraining, *, most: int | None, progress: bool) -> Iterator[Retraining]:
    """Show a progress bar over trainings, with the time left, on standard error.

    Args:
        retraining: How to train again.
        most: The number of trainings at most; ``None`` if nobody knows it.
        progress: Show it.
    """
    if not progress:
        yield retraining
        return
    look: dict[str, Any] = {"unit": " trainings", "dynamic_ncols": True, "file": sys.stderr, "leave": False}
    said = "training again" if most is None else "training again, at most"
    with logging_redirect_tqdm(), tqdm(total=most, desc=said, **look) as bar:

        def counted(selection: Selection) -> Any:
            result = retraining(selection)
            bar.update()
            return result

        yield counted


def trainings_at_most(strategy: Any, counts: int, methods: int, total: int) -> int | None:
    """Return how many times a cleansing job trains again at most; ``None`` if its strategy does not say.

    Args:
        strategy: One that tries the counts of a grid, or leaves out a number that is given.
        counts: Numbers of examples on each curve.
        methods: Number of curves.
        total: Number of training examples.
    """
    if not hasattr(strategy, "grid"):
        return None
    grid = default_grid(total) if strategy.grid is None else strategy.grid
    return 1 + len(grid) + counts * methods  # with nothing left out, for the choice, for the curves
