"""The accuracy of models on a set of the run's own training examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lightning_sgdinf.replay import OpenedRun, class_probabilities
from lightning_sgdinf.state import ModelState


@dataclass(slots=True)
class SetAccuracy:
    """The share of a set of training examples that a model classifies as labelled; counts its forward passes.

    Attributes:
        run: The run.
        ids: Of the examples, at least one; taken without random augmentation, where the data set knows how.
        labels: Labels to hold the model's classes against, by id; the data set's own for the others.
        batch_size: Examples per pass.
        forwards: Examples that went through the network so far.
    """

    run: OpenedRun
    ids: Sequence[int]
    labels: Mapping[int, int] = field(default_factory=dict)
    batch_size: int = 500
    forwards: int = 0

    def __call__(self, state: ModelState) -> float:
        """Return the accuracy of a model, in ``[0, 1]``.

        Raises:
            ConfigurationError: The run's loss is not that of a classifier.
            NonFiniteError: The model gives NaN.
        """
        ids = torch.tensor(self.ids)
        examples = self.run.training.plain().subset(ids)
        probabilities = class_probabilities(self.run, examples, state, batch_size=self.batch_size)
        labels = probabilities.labels
        if self.labels:
            pairs = zip(self.ids, labels.tolist(), strict=True)
            labels = torch.tensor([self.labels.get(example, label) for example, label in pairs])
        self.forwards += len(ids)
        return float((probabilities.log_values.argmax(1) == labels).double().mean())

    @property
    def epochs(self) -> float:
        """Return the cost so far in epochs; a forward pass counts a third of an example's gradient."""
        return self.forwards / 3 / self.run.examples
