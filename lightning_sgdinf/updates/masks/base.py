"""The interface of a criterion by which parameters are chosen that may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState


class ParameterCriterion(Protocol):
    """Chooses trained parameters by what a set of training examples does in a model. A frozen value."""

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return the chosen parameters.

        Args:
            run: The run.
            model: Parameters and buffers to look at.
            ids: Training examples, at least one.

        Raises:
            ConfigurationError: The model has no layer that the criterion knows, or nothing is chosen.
        """
        ...


@dataclass(frozen=True, slots=True)
class AllParameters:
    """All trained parameters."""

    def choose(self, run: OpenedRun, model: ModelState, ids: Sequence[int]) -> ParameterMask:
        """Return all; see `ParameterCriterion.choose`."""
        del model, ids
        return ParameterMask(torch.ones(run.objective.vector.size, dtype=torch.bool))
