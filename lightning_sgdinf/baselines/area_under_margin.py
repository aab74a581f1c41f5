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
from lightning_sgdinf.baselines.features import first_not_finite
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError, StateNotStoredError
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.replay import Examples, OpenedRun, class_probabilities, lead


@dataclass(frozen=True, slots=True)
class AreaUnderMargin:
    r"""The lead of the given label's logit, averaged over recorded states ``S``; eval mode, no augmentation.

    .. math:: \frac{1}{|S|} \sum_{t \in S} \Big(z_y(\theta_t) - \max_{c \ne y} z_c(\theta_t)\Big)

    In a configuration::

        _target_: lightning_sgdinf.baselines.AreaUnderMargin

    Attributes:
        states: Number of states, evenly spaced up to the last one, at least 2; fewer where fewer are recorded.
        share: Of the run, the end of it that they are taken from, in ``(0, 1]``.
        batch_size: Examples per forward pass.
        seed: Of what the training step draws, or a data set that does not say what its examples are without
            augmentation.
        title: Name of the values, for tables and axes.

    Raises:
        ConfigurationError: A number out of range.
    """

    states: int = 12
    share: float = 0.3
    batch_size: int = 500
    seed: int = 0
    title = "mean margin of the label along the run"

    def __post_init__(self) -> None:
        if self.states < 2 or not 0 < self.share <= 1:
            raise ConfigurationError(
                f"AreaUnderMargin: expected 2 states or more and a share above 0 and up to 1, got {self.states} and "
                f"{self.share}"
            )

    def state_indices(self, log: Trajectory) -> tuple[int, ...]:
        """Return the states it looks at: of those that are stored, the nearest to evenly spaced ones, each once.

        Raises:
            StateNotStoredError: Fewer than two are stored in that part of the run.
        """
        end, stored = len(log), log.state_indices
        part = self.share * end
        stored = stored[stored >= end - part]
        wanted = end - part * np.arange(self.states) / self.states
        indices = {int(stored[np.abs(stored - at).argmin()]) for at in wanted} if len(stored) else set()
        if len(indices) < 2:
            raise StateNotStoredError(
                f"AreaUnderMargin: expected two recorded states or more in the last {100 * self.share:.0f} % of {end} "
                f"steps, got {len(indices)}; record with keep='every_step' or another interval, give a larger share, "
                "or rank by MarginBaseline, which looks at the final model alone"
            )
        return tuple(sorted(indices))

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``, differences of logits.

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
                probabilities = class_probabilities(run, examples, state, batch_size=self.batch_size)
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.title}: at state {index} not all of them are finite ({error})") from error
        margins = lead(probabilities.log_values, probabilities.labels, alone=-torch.inf)
        if (wrong := first_not_finite(margins)) is not None:
            raise NonFiniteError(f"{self.title}: that of example {wrong} at state {index} is {margins[wrong].item()}")
        return margins
