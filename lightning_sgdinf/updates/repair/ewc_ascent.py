r"""Ascent on a set's loss, held by elastic weights, capped, and no longer than held-out data say it helps.

.. math:: \theta_{-C} = \arg\min_\theta\ -\frac1N \sum_{j \in C} \min(l_j(\theta), cap) + \tfrac12 (\theta -
    \hat\theta)^T (F + \lambda)(\theta - \hat\theta)

Without the cap the objective has no minimum and the losses grow without bound, whatever the set is. At ``log C``, the
loss of a guess among ``C`` classes, an example is not pushed any further. The number of steps is chosen on the half of
the validation set that may be chosen by; zero, no step, is among them.

References:
    Tanno, Pradier, Nori and Li, "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022
    (arXiv:2207.04806).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.curvature import likelihood_at
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.line import on_device
from lightning_sgdinf.updates.post_hoc.student import expect_drops, retained
from lightning_sgdinf.updates.repair.consolidation import ElasticWeights, vector_of, with_vector
from lightning_sgdinf.updates.repair.failures import Failures, choosing_loss


@dataclass(frozen=True, slots=True)
class EwcAscent:
    """Capped ascent, chosen on held-out data; see the module's text.

    Attributes:
        failures: Halves of the validation set; its choosing half chooses.
        weights: What holds the model; the most steps are its ``steps``.
        cap: Loss at which an example is not pushed further, in nats, > 0; ``None`` for that of a guess,
            ``log(classes)``. There is no ascent without a cap.
        looks: Numbers of steps that are tried, increasing; beside them 0.
        batch_size: Examples per pass.
    """

    failures: Failures
    weights: ElasticWeights = field(default_factory=lambda: ElasticWeights(steps=40))
    cap: float | None = None
    looks: Sequence[int] = (1, 2, 3, 5, 10, 20, 40)
    batch_size: int = 500

    def __post_init__(self) -> None:
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ConfigurationError(
                f"EwcAscent(cap): expected a loss > 0 in nats, or None for log(classes), got {self.cap}; an ascent "
                "without a cap has no end"
            )
        looks = tuple(self.looks)
        if not looks or list(looks) != sorted(set(looks)) or looks[0] < 1 or looks[-1] > self.weights.steps:
            raise ConfigurationError(
                f"EwcAscent(looks): expected increasing numbers from 1 to {self.weights.steps} (weights.steps), got "
                f"{looks}"
            )
        object.__setattr__(self, "looks", looks)

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Ascend, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; or the run is not that of a classifier.
        """
        retained(run, selection)
        expect_drops(selection)
        began, model = perf_counter(), on_device(run, run.model)
        ids = torch.tensor(sorted(selection.drop))
        with random_state.seeded(0):
            stiffness = self.weights.stiffness(run)
            size, start = self.weights.step_size(stiffness), vector_of(run, model)
            theta, velocity = start.clone(), torch.zeros_like(start)
            best = (choosing_loss(run, self.failures, model), 0, model.clone())
            for step in range(1, self.looks[-1] + 1):
                push = self._push(run, with_vector(run, model, theta), ids)
                velocity = self.weights.momentum * velocity - push + stiffness * (theta - start)
                theta = theta - size * velocity
                if step in self.looks:
                    state = with_vector(run, model, theta)
                    best = min(best, (choosing_loss(run, self.failures, state), step, state), key=lambda b: b[0])
        _, taken, state = best
        note = (
            f"{taken} of {self.looks[-1]} steps of capped ascent, chosen on half of the validation set."
            if taken
            else "No step: none of the tried ones lowers the loss on the choosing half; this is the run's own model."
        )
        return Updated(
            state=ModelState(params=state.params, buffers=state.buffers),
            seconds=perf_counter() - began,
            notes=(note,),
        )

    def _push(self, run: OpenedRun, model: ModelState, ids: Tensor) -> Tensor:
        """Return the gradient of the set's capped losses, summed, over ``N``."""
        vector, parameters = run.objective.vector, run.objective.parameters
        total = torch.zeros(vector.size, dtype=parameters[0].dtype, device=run.host.device)
        examples = run.training.plain()
        with likelihood_at(run, model) as likelihood:
            for own in ids.split(self.batch_size):
                seen = likelihood(examples.batch(own))
                losses = seen.losses
                cap = math.log(seen.classes) if self.cap is None else self.cap
                live = losses[losses.detach() < cap]
                if len(live):
                    grads = torch.autograd.grad(live.sum() / run.examples, parameters, allow_unused=True)
                    vector.add_to(total, grads)
        return total
