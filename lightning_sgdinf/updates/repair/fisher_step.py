r"""One natural-gradient step away from a set of examples, by an approximate Fisher matrix.

With :math:`g = \frac1N \sum_{j \in C} \nabla l_j` (with new labels: less the same with these), the step is

.. math:: \theta_{-C} = \hat\theta + (F + \lambda)^{-1} g,

what the posterior's mean moves by when the set's likelihood is divided out, to first order. Cost: the Fisher matrix,
the set's gradient and one Gauss-Newton product.

The step is only as good as the matrix. Along its direction ``d`` the quadratic model of the training loss has its
minimum at :math:`t = g^T d / d^T (G + \lambda) d`, ``G`` the Gauss-Newton matrix; beyond twice that, the step raises
what it should lower. Where a full step is longer, it is refused: a diagonal ignores that parameters act together, and
its step at full size destroys networks (measured on MNIST: an accuracy of .93 falls to between .1 and .4).

References:
    Tanno, Pradier, Nori and Li, "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022
    (arXiv:2207.04806).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from time import perf_counter

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.curvature import Fisher, KroneckerFactors, TrainingCurvature
from lightning_sgdinf.errors import ConfigurationError, DivergenceError
from lightning_sgdinf.replay import OpenedRun, ReplaceLabels, relabelled, replace_second
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.forgotten import expect_examples
from lightning_sgdinf.updates.line import on_device
from lightning_sgdinf.updates.repair.consolidation import vector_of, with_vector

FARTHEST = 2.0
"""Where a step begins to raise the quadratic model that it should lower, in distances to its minimum."""


@dataclass(frozen=True, slots=True)
class FisherStep:
    """A natural-gradient step; see the module's text.

    In a configuration file::

        _target_: lightning_sgdinf.updates.repair.FisherStep

    Attributes:
        fisher: The approximation.
        damping: Added to it, > 0.
        size: What the step is multiplied by, > 0; 1 is the exact size.
        examples: Training examples that the Gauss-Newton matrix of the condition is of, at least 1.
        batch_size: Examples per pass; 1 for losses that are not the mean over a batch.
        replace_labels: How labels are changed in a batch.
    """

    fisher: Fisher = field(default_factory=KroneckerFactors)
    damping: float = 0.1
    size: float = 1.0
    examples: int = 2000
    batch_size: int = 500
    replace_labels: ReplaceLabels = replace_second

    def __post_init__(self) -> None:
        if not (0 < self.damping < inf and 0 < self.size < inf) or self.examples < 1 or self.batch_size < 1:
            raise ConfigurationError(
                f"FisherStep: expected damping and size > 0, examples and batch_size >= 1, got {self.damping}, "
                f"{self.size}, {self.examples} and {self.batch_size}"
            )

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Take the step, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty or names an example that the data set does not have; the run is
                not that of a classifier, or its layers are not of the matrix's kind.
            DivergenceError: A full step raises the quadratic model of the training loss; says by how much it is too
                long.
        """
        selection.check(run.examples)
        expect_examples([*selection.drop, *selection.relabel])
        began, model = perf_counter(), on_device(run, run.model)
        with random_state.seeded(0):
            run.audit()
            matrix = self.fisher.of(run)
            gradient = self._gradient(run, selection)
            step = matrix.solve(gradient[None], self.damping)[0] * self.size
            length = self._length(run, gradient, step)
        if not length <= FARTHEST:
            raise DivergenceError(
                f"{type(self.fisher).__name__}: a step of size {self.size:g} goes {length:.3g} times as far as the "
                f"minimum of the training loss's quadratic model along it, and beyond {FARTHEST:g} times it raises "
                f"what it should lower. Take KroneckerFactors(), a larger damping than {self.damping:g}, or "
                f"size={self.size / length:.2g}"
            )
        return Updated(
            state=with_vector(run, model, vector_of(run, model) + step),
            seconds=perf_counter() - began,
            notes=(
                f"A natural-gradient step by {type(self.fisher).__name__}, damping {self.damping:g}, {length:.3g} of "
                "the way to the minimum of the quadratic model along it.",
            ),
        )

    def _gradient(self, run: OpenedRun, selection: Selection) -> Tensor:
        """Return the sum of the set's gradients, over ``N``; of relabelled examples the difference."""
        objective, like = run.objective, run.log.step(len(run.log) - 1)
        objective.load(run.model)
        total = torch.zeros(objective.vector.size, dtype=objective.parameters[0].dtype, device=run.host.device)
        edit = relabelled(selection.relabel, self.replace_labels) if selection.relabel else None
        for ids, change, sign in (
            (selection.drop, None, 1.0),
            (tuple(selection.relabel), None, 1.0),
            (tuple(selection.relabel), edit, -1.0),
        ):
            if ids:
                own = torch.tensor(sorted(ids))
                mean = TrainingCurvature(objective, like, own, batch_size=self.batch_size, edit=change).gradient()
                total.add_(mean, alpha=sign * len(own) / run.examples)
        return total

    def _length(self, run: OpenedRun, gradient: Tensor, step: Tensor) -> float:
        """Return how far the step goes, in distances to the minimum of the quadratic model along it."""
        if not bool(gradient.any()):
            return 0.0  # labels that stay what they were: no step
        objective, like = run.objective, run.log.step(len(run.log) - 1)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randperm(run.examples, generator=generator)[: self.examples].sort().values
        objective.load(run.model)
        curvature = TrainingCurvature(objective, like, ids, kind="gauss_newton", batch_size=self.batch_size)
        bend = float(step @ curvature.product(step[None])[0]) + self.damping * float(step @ step)
        along = float(gradient @ step)
        return bend / along if along > 0 else float("inf")
