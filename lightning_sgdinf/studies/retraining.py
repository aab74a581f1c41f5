"""The ways to train again that a configuration names under ``retrain``: any `ModelUpdate`, and `Scratch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from lightning_sgdinf.updates import FreshTraining, ModelUpdate


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
