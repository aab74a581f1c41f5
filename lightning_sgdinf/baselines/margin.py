"""A ranking by the margin of the given label: examples that the model would sooner call something else come first.

Like the loss, a nearly free way to find wrong labels; unlike it, it does not ask how sure the model is that it is none
of the other classes. Cost: one forward pass over the training set.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.replay import OpenedRun, class_probabilities, lead


@dataclass(frozen=True, slots=True)
class MarginBaseline:
    r"""The lead of the given label's probability at the final model, in eval mode and without augmentation.

    .. math:: p_y - \max_{c \ne y} p_c

    In a configuration::

        _target_: lightning_sgdinf.baselines.MarginBaseline

    Attributes:
        batch_size: Examples per forward pass.
        seed: Of what the training step draws, or a data set that does not say what its examples are without
            augmentation.
        title: Name of the values, for tables and axes.
    """

    batch_size: int = 500
    seed: int = 0
    title = "probability margin of the label"

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]`` in ``[-1, 1]``.

        Raises:
            ConfigurationError: The step's loss is not one of a classifier.
            NonFiniteError: A probability is NaN; names the example.
        """
        with random_state.seeded(self.seed):
            probabilities = class_probabilities(run, run.training.plain(), batch_size=self.batch_size)
        return lead(probabilities.values, probabilities.labels, alone=-1.0)
