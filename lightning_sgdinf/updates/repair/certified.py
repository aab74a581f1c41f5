r"""Certified removal from a linear classifier (Guo et al.): a Newton step, and a bound on what it leaves behind.

For each output a logistic regression on the ``d`` inputs of the model's only layer (with a 1 for the bias), one class
against the others, or the one output of a binary classifier, of the ``n`` examples that are left,

.. math:: L(w) = \sum_i \log(1 + e^{-s_i w^T x_i}) + \tfrac{\lambda n}{2} \lVert w\rVert^2 + b^T w,

with ``b`` drawn once from :math:`N(0, \sigma^2 I)`. From the minimum for all examples, removal of a set takes one
Newton step :math:`\Delta = H^{-1} \sum_{i \in C} (\nabla l_i + \lambda w)`, ``H`` of what is left. The
gradient that is left over is :math:`\int_0^1 (H(w + t \Delta) - H(w))\,\Delta\,dt`, and the curvature of a logistic
loss changes by no more than :math:`1 / (6 \sqrt 3)` of what its argument does, so it is at most

.. math:: \lVert\nabla L(w + \Delta)\rVert \le \tfrac{1}{12 \sqrt 3} \lVert X\rVert_2 \lVert (X \Delta)^2\rVert,

with the squares taken row by row. (The published bound, :math:`\tfrac14 \lVert X\rVert_2 \lVert\Delta\rVert \lVert X
\Delta\rVert`, is for rows of length 1 or less, and nothing makes inputs so short; where they are, it is at least 5
times this one.) What rounding the weights to the model's precision changes of the gradient is added to it. As long as
that is at most :math:`\sigma \epsilon / c`, :math:`c = \sqrt{2 \log(1.5/\delta)}`, the model is :math:`(\epsilon,
\delta)`-indistinguishable from one trained without the set, output by output (``K`` outputs together have ``K`` times
both). The guarantee is for one removal from the minimum for all; one after another, bounds add up.

The run's own final model is no minimum, so nothing can be certified of it: the minimum is computed first, from the
training set, and with an empty selection it is the result.

References:
    Guo, Goldstein, Hannun and van der Maaten, "Certified Data Removal from Machine Learning Models", ICML 2020
    (arXiv:1911.03030).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.curvature import likelihood_at
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, ForgettingError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.line import on_device
from lightning_sgdinf.updates.post_hoc.student import expect_drops

NEWTON_STEPS = 100
SMALL = 1e-9
"""Gradient of the mean objective at which a minimum counts as reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedlyRemoved(Updated):
    """The outcome of `CertifiedRemoval`.

    Attributes:
        bounds: Of the gradient that is left over, one per output.
        budget: What a bound may be: ``sigma epsilon / c``.
    """

    bounds: tuple[float, ...]
    budget: float

    @property
    def certified(self) -> bool:
        """Return whether every bound is within the budget."""
        return max(self.bounds, default=0.0) <= self.budget


@dataclass(frozen=True, slots=True)
class LogisticProblem:
    """A perturbed logistic regression per output.

    Attributes:
        inputs: ``X``, float64 ``[n, d]``.
        signs: ``s``, float64 ``[n, K]``, -1 or 1.
        noise: ``b``, float64 ``[d, K]``.
        penalty: ``lambda``.
    """

    inputs: Tensor
    signs: Tensor
    noise: Tensor
    penalty: float

    def without(self, drop: Tensor) -> LogisticProblem:
        """Return the same with the rows of a mask ``[n]`` left out; the noise stays."""
        return replace(self, inputs=self.inputs[~drop], signs=self.signs[~drop])

    def gradient(self, weights: Tensor) -> Tensor:
        """Return the gradient of every output's objective, ``[d, K]``."""
        slopes = -self.signs * torch.sigmoid(-self.signs * (self.inputs @ weights))
        return self.inputs.T @ slopes + self.penalty * len(self.inputs) * weights + self.noise

    def value(self, weights: Tensor) -> Tensor:
        """Return every output's objective, ``[K]``."""
        losses = F.softplus(-self.signs * (self.inputs @ weights)).sum(0)
        return losses + self.penalty * len(self.inputs) / 2 * weights.square().sum(0) + (self.noise * weights).sum(0)

    def hessian(self, weights: Tensor, output: int) -> Tensor:
        """Return the Hessian of one output's objective, ``[d, d]``."""
        p = torch.sigmoid(self.inputs @ weights[:, output])
        ridge = self.penalty * len(self.inputs) * torch.eye(self.inputs.shape[1], dtype=torch.float64)
        return self.inputs.T @ (self.inputs * (p * (1 - p))[:, None]) + ridge

    def newton(self, weights: Tensor, right: Tensor) -> Tensor:
        """Return the Hessians' inverses at weights times the columns of ``right``, ``[d, K]``."""
        solved = [torch.linalg.solve(self.hessian(weights, k), right[:, k]) for k in range(right.shape[1])]
        return torch.stack(solved, 1)

    def minimum(self, start: Tensor) -> Tensor:
        """Return the minimiser of every output's objective, ``[d, K]``, by Newton steps with backtracking.

        Raises:
            DivergenceError: It is not reached.
        """
        weights = start
        for _ in range(NEWTON_STEPS):
            gradient = self.gradient(weights)
            if float(gradient.norm(dim=0).max()) <= SMALL * len(self.inputs):
                return weights
            step, length = self.newton(weights, gradient), torch.ones(start.shape[1], dtype=torch.float64)
            before, fall = self.value(weights), (gradient * step).sum(0)
            for _ in range(40):
                enough = self.value(weights - length * step) <= before - 1e-4 * length * fall + 1e-12 * before.abs()
                if bool(enough.all()):
                    break
                length = torch.where(enough, length, length / 2)
            weights = weights - length * step
        raise DivergenceError(
            f"the minimum of the perturbed logistic regression was not reached in {NEWTON_STEPS} Newton steps; take a "
            "larger penalty, or inputs of a smaller scale"
        )

    def bounds(self, step: Tensor) -> Tensor:
        """Return the bound of the gradient that a step leaves over, per output ``[K]``."""
        spectral = torch.linalg.matrix_norm(self.inputs, 2)
        return spectral * (self.inputs @ step).square().norm(dim=0) / (12 * math.sqrt(3))


@dataclass(frozen=True, slots=True)
class CertifiedRemoval:
    r"""Removal with a certificate; see the module's text.

    Attributes:
        penalty: :math:`\lambda`, > 0.
        sigma: Standard deviation of the noise, > 0; more noise allows more removals, and costs accuracy.
        epsilon: > 0.
        delta: In ``(0, 1)``.
        seed: Of the noise, which hides what was removed only from those who do not know the seed: draw one that
            nobody can guess (``secrets.randbits(63)``), and keep it out of what is published.
        batch_size: Examples per pass.
    """

    penalty: float = 1e-3
    sigma: float = 10.0
    epsilon: float = 1.0
    delta: float = 1e-4
    seed: int = 0
    batch_size: int = 1000

    def __post_init__(self) -> None:
        if not (all(0 < v < inf for v in (self.penalty, self.sigma, self.epsilon)) and 0 < self.delta < 1):
            raise ConfigurationError(
                f"CertifiedRemoval: expected penalty, sigma and epsilon > 0 and delta in (0, 1), got {self.penalty}, "
                f"{self.sigma}, {self.epsilon} and {self.delta}"
            )

    @property
    def budget(self) -> float:
        """Return what a bound may be."""
        return self.sigma * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta))

    def update(self, run: OpenedRun, selection: Selection) -> CertifiedlyRemoved:
        """Remove, see `ModelUpdate`; with an empty selection, return the minimum for all examples.

        Raises:
            ConfigurationError: The model is not one linear layer with all its parameters trained, the run not that of a
                classifier; or the selection relabels, names an example that there is not, or drops all.
            ForgettingError: The bound exceeds the budget: nothing can be certified.
            DivergenceError: The minimum was not reached.
        """
        selection.check(run.examples)
        expect_drops(selection)
        if len(selection.drop) == run.examples:
            raise ConfigurationError(f"expected examples to retain, got a selection that drops all {run.examples}")
        began, layer = perf_counter(), _only_layer(run)
        with random_state.preserved():
            problem, start = run.once(("logistic problem", self), lambda: self._problem(run, layer))
        drop = torch.zeros(run.examples, dtype=torch.bool)
        drop[list(selection.drop)] = True
        left, weights, bounds = problem.without(drop), start, torch.zeros(start.shape[1], dtype=torch.float64)
        if selection.drop:
            # At the minimum for all, the gradient of what is left is minus that of the set with its share of the
            # penalty; the step takes the true one, so that what the minimum was missed by is not left behind.
            step = -left.newton(start, left.gradient(start))
            weights, bounds = start + step, left.bounds(step)
        rounded = weights.to(layer[1].weight.dtype).double()
        bounds = bounds + (left.gradient(rounded) - left.gradient(weights)).norm(dim=0)
        if not float(bounds.max()) <= self.budget:
            raise ForgettingError(
                f"CertifiedRemoval: the bound {float(bounds.max()):.3g} on the gradient left over exceeds the budget "
                f"{self.budget:.3g} (sigma {self.sigma:g}, epsilon {self.epsilon:g}, delta {self.delta:g}): removing "
                f"{len(selection.drop)} examples at once cannot be certified. Train anew without them, remove fewer, "
                "or take a larger sigma or penalty"
            )
        return CertifiedlyRemoved(
            state=_with_weights(run, layer, weights),
            seconds=perf_counter() - began,
            notes=(
                f"Certified: what {len(selection.drop)} examples leave behind is bounded by {float(bounds.max()):.3g}, "
                f"the budget is {self.budget:.3g}; ({self.epsilon:g}, {self.delta:g}) for each of {len(bounds)} "
                "outputs. The model is the minimum of a perturbed logistic regression, not the recorded run's.",
            ),
            bounds=tuple(bounds.tolist()),
            budget=self.budget,
        )

    def _problem(self, run: OpenedRun, layer: tuple[str, nn.Linear]) -> tuple[LogisticProblem, Tensor]:
        """Return the problem of all examples and its minimum."""
        rows, labels = _inputs_and_labels(run, layer[1], self.batch_size)
        outputs = layer[1].out_features
        if outputs == 1:
            signs = torch.where(labels == 1, 1.0, -1.0).double()[:, None]
        else:
            signs = 2 * F.one_hot(labels, outputs).double() - 1
        generator = torch.Generator().manual_seed(self.seed)
        noise = self.sigma * torch.randn(rows.shape[1], outputs, dtype=torch.float64, generator=generator)
        problem = LogisticProblem(rows, signs, noise, self.penalty)
        return problem, problem.minimum(torch.zeros_like(noise))


def _only_layer(run: OpenedRun) -> tuple[str, nn.Linear]:
    layers = [(name, m) for name, m in run.objective.module.named_modules() if isinstance(m, nn.Linear)]
    trained = set(run.objective.vector.names)
    if len(layers) == 1:
        name, layer = layers[0]
        dot = f"{name}." if name else ""
        if trained == {f"{dot}{own}" for own, _ in layer.named_parameters()}:
            _expect_no_running_statistics(run)
            return name, layer
    raise ConfigurationError(
        "CertifiedRemoval: expected a linear model, one nn.Linear whose weight and bias are all that is trained, got "
        f"{len(layers)} such layers and {len(trained)} trained parameters; the certificate is for convex losses. "
        "CounterfactualReplay('all') removes exactly from any run"
    )


def _expect_no_running_statistics(run: OpenedRun) -> None:
    for name, module in run.objective.module.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise ConfigurationError(
                f"CertifiedRemoval: expected inputs of the linear layer that do not depend on the training set, got "
                f"{name} ({type(module).__name__}), whose running statistics are of the removed examples too. "
                "CounterfactualReplay('all') removes exactly from any run"
            )


def _inputs_and_labels(run: OpenedRun, layer: nn.Linear, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return what goes into the layer, ``[N, d]`` float64 with a 1 for a bias, and the labels."""
    seen: list[Tensor] = []
    answers: list[Tensor] = []
    labels: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module
        seen.append(inputs[0].detach())
        answers.append(output.detach().clone())  # the model may change it in place

    handle = layer.register_forward_hook(look)
    try:
        with likelihood_at(run, run.model) as likelihood:
            for _, batch in run.training.plain().batches(batch_size):
                shown = likelihood(batch)
                labels.append(shown.labels.cpu())
                if answers and not torch.equal(answers.pop().flatten(), shown.logits.detach().flatten()):
                    raise ConfigurationError(
                        "CertifiedRemoval: expected the linear layer's outputs to be the logits of the loss, got "
                        "others: the model changes them afterwards. CounterfactualReplay('all') removes exactly from "
                        "any run"
                    )
    finally:
        handle.remove()
    if any(part.ndim != 2 for part in seen) or len(seen) != len(labels):
        raise ConfigurationError("CertifiedRemoval: expected one row of inputs per example at the linear layer")
    rows = torch.cat([part.to("cpu", torch.float64) for part in seen])
    if layer.bias is not None:
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    if not np.isfinite(rows.sum().item()):
        raise ConfigurationError("CertifiedRemoval: expected finite inputs at the linear layer, got NaN or infinity")
    return rows, torch.cat(labels)


def _with_weights(run: OpenedRun, layer: tuple[str, nn.Linear], weights: Tensor) -> ModelState:
    name, module = layer
    model = on_device(run, run.model)
    dot = f"{name}." if name else ""
    params = dict(model.params)
    wide = weights.T
    if module.bias is not None:
        params[f"{dot}bias"] = wide[:, -1].to(params[f"{dot}bias"]).clone()
        wide = wide[:, :-1]
    params[f"{dot}weight"] = wide.to(params[f"{dot}weight"]).clone()
    return replace(model, params=params, optimizer={}).clone()
