"""The recorded run with the labels that it would give to a set had it not seen it: two replays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from lightning_sgdinf import random_state
from lightning_sgdinf.replay import OpenedRun, ReplaceLabels, class_probabilities, replace_second
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import ModelUpdate, Updated
from lightning_sgdinf.updates.counterfactual import CounterfactualReplay
from lightning_sgdinf.updates.post_hoc.student import expect_drops, retained


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelled(Updated):
    """The outcome of `RelabelledReplay`.

    Attributes:
        labels: New label of each example of the set, by id.
    """

    labels: dict[int, int]


@dataclass(frozen=True, slots=True)
class RelabelledReplay:
    """Give a set the labels of the run without it, and take the run again with these.

    The labels are right about as often as the model without the set is: measured, .87 of them on MNIST and .73 on
    Fashion-MNIST with a tenth of the labels wrong.

    Attributes:
        epochs: As of `CounterfactualReplay`, of both replays.
        treatment: What is done with the new labels; a replay of these epochs if ``None``. `FineTuning` takes them, too.
        replace_labels: How labels are changed in a batch.
    """

    epochs: int | Literal["all"] = "all"
    treatment: ModelUpdate | None = None
    replace_labels: ReplaceLabels = replace_second

    def update(self, run: OpenedRun, selection: Selection) -> Relabelled:
        """Take the run again, twice; see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; or the run is not that of a classifier.
            SgdInfluenceError: What `CounterfactualReplay` raises.
        """
        retained(run, selection)
        expect_drops(selection)
        without = CounterfactualReplay(self.epochs).update(run, selection)
        ids = sorted(selection.drop)
        with random_state.preserved():
            examples = run.training.plain().subset(torch.tensor(ids))
            answers = class_probabilities(run, examples, without.state).log_values.argmax(1)
        labels = dict(zip(ids, answers.tolist(), strict=True))
        again = self.treatment or CounterfactualReplay(self.epochs, self.replace_labels)
        updated = again.update(run, replace(selection, drop=(), relabel=labels))
        return Relabelled(
            state=updated.state,
            seconds=without.seconds + updated.seconds,
            epochs=None if without.epochs is None or updated.epochs is None else without.epochs + updated.epochs,
            notes=(f"{len(ids)} examples got the labels of the run without them.", *updated.notes),
            labels=labels,
        )
