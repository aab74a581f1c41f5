"""The recorded run taken again with example weights of one's own: the general case of leaving examples out."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, audit_steps, first_step_of
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.counterfactual import expect_one_data_set, run_from
from lightning_sgdinf.updates.post_hoc.student import expect_drops


@dataclass(frozen=True, slots=True, eq=False)
class ReweightedReplay:
    """The last epochs of the recorded run, or all of it, with other weights of the examples' losses.

    Attributes:
        weight: Of the selection's examples, finite; 0 is `CounterfactualReplay`, 1 the recorded run.
        weights: Of all examples, ``[N]``, finite; the selection's are multiplied by ``weight``. Ones if ``None``.
        epochs: As of `CounterfactualReplay`.
    """

    weight: float = 0.0
    weights: Tensor | None = None
    epochs: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        for name, value in (("weight", torch.tensor(self.weight)), ("weights", self.weights)):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise ConfigurationError(f"ReweightedReplay({name}): expected finite numbers, got NaN or infinity")

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Take the run again, see `ModelUpdate`; the selection may be empty.

        Raises:
            ConfigurationError: ``weights`` are not one per training example; the selection relabels or names an example
                that the data set does not have; or what `CounterfactualReplay` raises.
        """
        expect_one_data_set(run.log)
        selection.check(run.examples)
        expect_drops(selection)
        weights = torch.ones(run.examples, dtype=torch.float64)
        if self.weights is not None:
            if self.weights.shape != (run.examples,):
                raise ConfigurationError(
                    f"ReweightedReplay(weights): expected shape [{run.examples}], one per training example, got "
                    f"{list(self.weights.shape)}"
                )
            weights = self.weights.detach().to("cpu", torch.float64).clone()
        weights[list(selection.drop)] *= self.weight
        first = first_step_of(run.log, self.epochs)
        with random_state.preserved():
            began = perf_counter()
            counterfactual = run_from(run, first)
            audit_steps(run, first)
            run.audit()
            before = counterfactual.replayer.gradients
            # Without weights the steps are taken as recorded, to the bit.
            state = counterfactual.run(weights=None if bool((weights == 1).all()) else weights)
        return Updated(
            state=state,
            seconds=perf_counter() - began,
            epochs=(counterfactual.replayer.gradients - before) / run.examples,
            notes=(f"Recorded steps {first} to {len(run.log) - 1} were taken again with weights.",),
        )
