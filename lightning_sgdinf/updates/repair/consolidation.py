r"""The model that learnt its failures, held to where it was by elastic weights.

.. math:: \theta_{+F} = \arg\min_\theta\ s\,q(\theta) + \tfrac12 (\theta - \hat\theta)^T (F + \lambda)(\theta -
    \hat\theta)

with ``q`` the mean loss of the failures, ``F`` the exact diagonal of the mean Fisher matrix at the final model
:math:`\hat\theta`, and strength ``s`` the number of failures over ``N``: the posterior of all training examples, times
the likelihood of the failures, divided by ``N``.

References:
    Kirkpatrick et al., "Overcoming Catastrophic Forgetting in Neural Networks", PNAS 2017 (arXiv:1612.00796).
    Tanno, Pradier, Nori and Li, "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022
    (arXiv:2207.04806).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.curvature import ExactDiagonal
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, NonFiniteError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.line import on_device
from lightning_sgdinf.updates.repair.failures import Failures


@dataclass(frozen=True, slots=True)
class ElasticWeights:
    """A quadratic that holds a model where it is, and how to descend in it.

    The step size is ``rate / (max F + damping + 1)``: stable whatever the Fisher matrix is.

    Attributes:
        damping: Added to the diagonal, > 0: without it, parameters that no example needs run away.
        steps: Of descent with momentum, at least 1.
        rate: > 0.
        momentum: In ``[0, 1)``.
        fisher: The diagonal.
    """

    damping: float = 0.01
    steps: int = 60
    rate: float = 0.5
    momentum: float = 0.9
    fisher: ExactDiagonal = field(default_factory=ExactDiagonal)

    def __post_init__(self) -> None:
        if not (0 < self.damping < inf and 0 < self.rate < inf and 0 <= self.momentum < 1) or self.steps < 1:
            raise ConfigurationError(
                f"ElasticWeights: expected damping and rate > 0, momentum in [0, 1) and steps >= 1, got "
                f"{self.damping}, {self.rate}, {self.momentum} and {self.steps}"
            )

    def stiffness(self, run: OpenedRun) -> Tensor:
        """Return ``F + damping`` as a vector ``[P]`` where the run computes."""
        values = self.fisher.of(run).values + self.damping
        return values.to(run.host.device, run.objective.parameters[0].dtype)

    def step_size(self, stiffness: Tensor) -> float:
        """Return the step size for a stiffness."""
        return self.rate / (float(stiffness.max()) + 1.0)


def learnt(run: OpenedRun, failures: Failures, weights: ElasticWeights) -> ModelState:
    """Return the model that learnt its failures, computed once while the run is open.

    Args:
        run: The run.
        failures: What to learn: those of the half that is asked about.
        weights: What holds the model.

    Raises:
        DivergenceError: The descent left the numbers.
    """

    def compute() -> ModelState:
        model = on_device(run, run.model)
        query = BoundQuery.of(run, failures.query)
        strength = len(failures.blamed) / run.examples
        stiffness = weights.stiffness(run)
        size, start = weights.step_size(stiffness), vector_of(run, model)
        theta, velocity = start.clone(), torch.zeros_like(start)
        for _ in range(weights.steps):
            try:
                pull = query.gradient(with_vector(run, model, theta))[1].params[0].to(theta)
            except NonFiniteError as error:
                raise DivergenceError(
                    "learning the failures diverged; take a smaller rate or a larger damping"
                ) from error
            velocity = weights.momentum * velocity + strength * pull + stiffness * (theta - start)
            theta = theta - size * velocity
        return with_vector(run, model, theta)

    return run.once(("learnt", failures, weights), compute)


def vector_of(run: OpenedRun, model: ModelState) -> Tensor:
    """Return a model's trained parameters as one vector ``[P]``."""
    return run.objective.vector.join([model.params[name] for name in run.objective.vector.names]).detach()


def with_vector(run: OpenedRun, model: ModelState, vector: Tensor) -> ModelState:
    """Return a model with other trained parameters, ``[P]``; it shares no memory with the first."""
    names, parts = run.objective.vector.names, run.objective.vector.split(vector)
    params = {**model.params, **{name: part.clone() for name, part in zip(names, parts, strict=True)}}
    return replace(model, params=params, optimizer={}).clone()
