"""A ranking by the margin of the given label along the run: labels that the model resisted for long come first.

What a single model says of a label depends on where its last steps threw it; the mean over many states of the run does
not, and a recorded run has them. Cost: one forward pass over the training set for each state.

References:
    Pleiss, Zhang, Elenberg and Weinberger, "Identifying Mislabeled Data using the Area Under the Margin Ranking",
    NeurIPS 2020 (arXiv:2001.10528). There the logits are those of training itself, once per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.class_probabilities import class_probabilities, lead
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError, StateNotStoredError
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.examples import Examples
from lightning_sgdinf.replay.opened import OpenedRun


@dataclass(frozen=True, slots=True)
class AreaUnderMargin:
    r"""How far the logit of the given label is ahead, averaged over recorded states ``S``; eval mode, no augmentation.

    .. math:: \frac{1}{|S|} \sum_{t \in S} \Big(z_y(\theta_t) - \max_{c \ne y} z_c(\theta_t)\Big)

    In a configuration::

        _target_: lightning_sgdinf.baselines.AreaUnderMargin

    Attributes:
        states: How many states, evenly spaced up to the last one, at least 2; fewer where fewer are recorded.
        share: Of the run, the end of it that they are taken from, in ``(0, 1]``.
        batch_size: Examples per forward pass.
        seed: Of what the training step draws, or a data set that does not say what its examples are without
            augmentation.

    Raises:
        ConfigurationError: A number out of range.
    """

    states: int = 12
    share: float = 0.3
    batch_size: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.states < 2 or not 0 < self.share <= 1:
            raise ConfigurationError(
                f"AreaUnderMargin: expected 2 states or more and a share above 0 and up to 1, got {self.states} and "
                f"{self.share}"
            )

    @property
    def title(self) -> str:
        """What the values are."""
        return "mean margin of the label along the run"

    def state_indices(self, log: Trajectory) -> tuple[int, ...]:
        """Which states it looks at: of those that are stored, the nearest to evenly spaced ones, each once.

        Raises:
            StateNotStoredError: Fewer than two are stored in that part of the run.
        """
        end, stored = len(log), log.state_indices
        part = self.share * end
        stored = stored[stored >= end - part]
        wanted = end - part * np.arange(self.states) / self.states
        found = {int(stored[np.abs(stored - at).argmin()]) for at in wanted} if len(stored) else set()
        if len(found) < 2:
            raise StateNotStoredError(
                f"AreaUnderMargin: expected two recorded states or more in the last {self.share:.0%} of {end} steps, "
                f"got {len(found)}; record with keep='every_step' or another interval, give a larger share, or rank by "
                "MarginBaseline, which looks at the final model alone"
            )
        return tuple(sorted(found))

    def rank(self, run: OpenedRun) -> Tensor:
        """Values ``[N]``, differences of logits.

        Raises:
            ConfigurationError: The step's loss is not one of a classifier.
            NonFiniteError: A margin is NaN or infinite; names the state.
            StateNotStoredError: Fewer than two states are stored in that part of the run.
        """
        indices = self.state_indices(run.log)
        examples = run.training.plain()
        values = torch.zeros(run.examples, dtype=torch.float64)
        for index in indices:
            values += self._margins(run, examples, index) / len(indices)
        return values

    def _margins(self, run: OpenedRun, examples: Examples, index: int) -> Tensor:
        state = run.log.state(index)
        try:
            with random_state.seeded(self.seed):
                found = class_probabilities(run, examples, state, batch_size=self.batch_size)
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.title}: at state {index} not all of them are finite ({error})") from error
        margins = lead(found.log_values, found.labels, alone=-torch.inf)
        if not bool(torch.isfinite(margins).all()):
            wrong = int((~torch.isfinite(margins)).nonzero()[0])
            raise NonFiniteError(f"{self.title}: that of example {wrong} at state {index} is {margins[wrong].item()}")
        return margins
