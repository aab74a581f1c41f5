r"""Approximations of the Fisher information of a classifier's training set, and solves with them.

The mean Fisher matrix is :math:`F = \frac1N \sum_j \mathrm{E}_y[\nabla l_j \nabla l_j^T]`, labels ``y`` drawn from the
model at each example (*exact*: summed over all classes, nothing is sampled), or with the given labels (*empirical*).

* `ExactDiagonal`, `EmpiricalDiagonal`: its diagonal. It ignores that parameters act together: a step by it, at full
  size, is often far too long (`lightning_sgdinf.updates.repair.FisherStep` looks).
* `KroneckerFactors`: per layer :math:`A \otimes S`, moments of its inputs and of its output slopes (K-FAC), labels
  exact; for linear and convolutional layers.

Cost: one pass forward and one backward per class (empirical: one) over the examples.

References:
    Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015
    (arXiv:1503.05671).
    Grosse and Martens, "A Kronecker-factored Approximate Fisher Matrix for Convolution Layers", ICML 2016
    (arXiv:1602.01407).
    Kunstner, Balles and Hennig, "Limitations of the Empirical Fisher Approximation", NeurIPS 2019 (arXiv:1905.12558).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.curvature.layer_slopes import (
    WatchedLayer,
    begin_pass,
    output_slopes,
    separable_layers,
    watched_layers,
)
from lightning_sgdinf.curvature.likelihood import Likelihood, likelihood_at
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.parameters import ParameterVector
from lightning_sgdinf.replay import OpenedRun

ALONE = 16
"""Examples whose gradients in parameters of other layers are taken together, each by itself."""


class FisherMatrix(Protocol):
    """A Fisher matrix that systems can be solved with."""

    def solve(self, rows: Tensor, damping: float) -> Tensor:
        r"""Return :math:`(F + \lambda)^{-1}` times each row, ``[Q, P]``.

        Args:
            rows: ``[Q, P]``.
            damping: :math:`\lambda > 0`.
        """
        ...


class Fisher(Protocol):
    """Computes an approximation at a run's final model. A frozen value."""

    def of(self, run: OpenedRun) -> FisherMatrix:
        """Return the matrix of all training examples, computed once while the run is open.

        Raises:
            ConfigurationError: The run is not that of a classifier, or its layers are not of the kind.
            NonFiniteError: The final model's gradients are not finite.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalFisher:
    """A diagonal.

    Attributes:
        values: ``[P]``, float64, CPU, at least 0.
    """

    values: Tensor

    def solve(self, rows: Tensor, damping: float) -> Tensor:
        """Divide; see `FisherMatrix.solve`."""
        return rows / (self.values + damping).to(rows)


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerBlock:
    """The block of one layer.

    Attributes:
        names: Of its parameters, the weight first.
        inputs: ``A``, ``[I, I]`` float64: second moment of its inputs, with a 1 for the bias.
        slopes: ``S``, ``[O, O]`` float64: second moment of its output slopes.
    """

    names: tuple[str, ...]
    inputs: Tensor
    slopes: Tensor

    def damped(self, damping: float) -> tuple[Tensor, Tensor]:
        r"""Return both factors, the damping divided between them.

        :math:`A + \sqrt\lambda\,\pi` and :math:`S + \sqrt\lambda / \pi`, :math:`\pi` the root of the ratio of their
        mean eigenvalues.
        """
        sizes = [factor.trace() / len(factor) for factor in (self.inputs, self.slopes)]
        tiny = torch.finfo(torch.float64).tiny
        ratio = float((sizes[0].clamp_min(tiny) / sizes[1].clamp_min(tiny)).sqrt()) if bool(sizes[0] > 0) else 1.0
        ratio = ratio if bool(sizes[1] > 0) else 1.0
        eyes = [torch.eye(len(factor), dtype=torch.float64) for factor in (self.inputs, self.slopes)]
        return self.inputs + damping**0.5 * ratio * eyes[0], self.slopes + damping**0.5 / ratio * eyes[1]


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerFisher:
    """A block per layer.

    Attributes:
        blocks: Of all layers.
        layers: The same layers, for the shapes.
        vector: Where parameters lie.
    """

    blocks: tuple[KroneckerBlock, ...]
    layers: tuple[WatchedLayer, ...]
    vector: ParameterVector

    def solve(self, rows: Tensor, damping: float) -> Tensor:
        """Solve layer by layer; see `FisherMatrix.solve`."""
        parts = dict(zip(self.vector.names, self.vector.split(rows.to("cpu", torch.float64)), strict=True))
        for block, layer in zip(self.blocks, self.layers, strict=True):
            inputs, slopes = block.damped(damping)
            joined = layer.join([parts[name] for name in block.names])
            solved = torch.linalg.solve(slopes, torch.linalg.solve(inputs, joined.transpose(-1, -2)).transpose(-1, -2))
            for place, name in enumerate(block.names):
                own = torch.stack([layer.split(one)[place] for one in solved])
                parts[name] = own
        return self.vector.join_rows([parts[name] for name in self.vector.names]).to(rows)


@dataclass(frozen=True, slots=True)
class ExactDiagonal:
    """The diagonal, labels summed over all classes.

    Attributes:
        batch_size: Examples per pass.
    """

    batch_size: int = 500

    def of(self, run: OpenedRun) -> DiagonalFisher:
        """Return it; see `Fisher.of`."""
        return run.once(("fisher", self), lambda: _diagonal(run, self.batch_size, exact=True))


@dataclass(frozen=True, slots=True)
class EmpiricalDiagonal:
    """The diagonal with the given labels, the mean square of the examples' gradients.

    Attributes:
        batch_size: Examples per pass.
    """

    batch_size: int = 500

    def of(self, run: OpenedRun) -> DiagonalFisher:
        """Return it; see `Fisher.of`."""
        return run.once(("fisher", self), lambda: _diagonal(run, self.batch_size, exact=False))


@dataclass(frozen=True, slots=True)
class KroneckerFactors:
    """Kronecker factors per layer (K-FAC), labels summed over all classes.

    Attributes:
        batch_size: Examples per pass.
    """

    batch_size: int = 500

    def of(self, run: OpenedRun) -> KroneckerFisher:
        """Return them; see `Fisher.of`.

        Raises:
            ConfigurationError: A trained parameter is of no linear or plain convolutional layer, or its layer is called
                more than once in a pass, or its weight is used elsewhere, too; names it.
        """
        return run.once(("fisher", self), lambda: _factors(run, self.batch_size))


def _passes(run: OpenedRun, layers: Sequence[WatchedLayer], size: int) -> Iterator[Likelihood]:
    """Yield the likelihood of each batch of training examples, the layers having seen it."""
    with random_state.preserved(), likelihood_at(run, run.model) as likelihood:
        for _, batch in run.training.plain().batches(size):
            begin_pass(layers)
            yield likelihood(batch)


def _parameters(run: OpenedRun) -> dict[str, Tensor]:
    return dict(zip(run.objective.vector.names, run.objective.parameters, strict=True))


def _diagonal(run: OpenedRun, size: int, *, exact: bool) -> DiagonalFisher:
    vector, parameters = run.objective.vector, _parameters(run)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    with watched_layers(run) as layers:
        separable: list[WatchedLayer] | None = None
        for seen in _passes(run, layers, size):
            if separable is None:
                separable = separable_layers(layers, seen.logits, parameters)
            once = [layer for layer in separable if layer.called_once(len(seen.logits))]
            covered = {name for layer in once for name in layer.parameter_names}
            others = [name for name in parameters if name not in covered]
            patches = [layer.patches() for layer in once]
            for root in seen.slope_roots() if exact else iter([seen.label_slope]):
                slopes = output_slopes(once, seen.logits, root)
                for layer, own, slope in zip(once, patches, slopes, strict=True):
                    squares = _squares(own, slope)
                    for name, value in zip(layer.parameter_names, layer.split(squares), strict=True):
                        total[name] += value.to("cpu", torch.float64)
                if others:
                    for name, value in _squares_alone([parameters[n] for n in others], seen, root, others):
                        total[name] += value
    values = vector.join([total[name] for name in vector.names]) / run.examples
    _expect_finite(values)
    return DiagonalFisher(values)


def _factors(run: OpenedRun, size: int) -> KroneckerFisher:
    with watched_layers(run) as layers:
        inputs: list[Tensor | float] = [0.0] * len(layers)
        outputs: list[Tensor | float] = [0.0] * len(layers)
        separable: list[WatchedLayer] | None = None
        for seen in _passes(run, layers, size):
            if separable is None:
                separable = separable_layers(layers, seen.logits, _parameters(run))
            _expect_all_covered(run, [layer for layer in separable if layer.called_once(len(seen.logits))])
            for place, layer in enumerate(layers):
                own = layer.patches().to(torch.float64)
                inputs[place] = inputs[place] + torch.einsum("bti,btj->ij", own, own).cpu()
            for root in seen.slope_roots():
                for place, slope in enumerate(output_slopes(layers, seen.logits, root)):
                    wide = slope.to(torch.float64)
                    # a mean over positions, since the inputs' factor is a sum over them
                    outputs[place] = outputs[place] + torch.einsum("btj,btk->jk", wide, wide).cpu() / wide.shape[1]
    blocks = tuple(
        KroneckerBlock(layer.parameter_names, torch.as_tensor(a) / run.examples, torch.as_tensor(s) / run.examples)
        for layer, a, s in zip(layers, inputs, outputs, strict=True)
    )
    for block in blocks:
        _expect_finite(block.inputs)
        _expect_finite(block.slopes)
    begin_pass(layers)
    return KroneckerFisher(blocks, tuple(layers), run.objective.vector)


def _squares(patches: Tensor, slopes: Tensor) -> Tensor:
    """Return the sum over examples of squared gradients, ``[O, I]``."""
    if patches.shape[1] == 1:
        return slopes[:, 0].square().T @ patches[:, 0].square()
    return torch.einsum("bto,bti->boi", slopes, patches).square().sum(0)


def _squares_alone(
    parameters: Sequence[Tensor], seen: Likelihood, root: Tensor, names: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield by name the sum over examples of squared gradients, each example's taken by itself."""
    for rows in torch.arange(len(root)).split(ALONE):
        own = torch.zeros(len(rows), *root.shape, dtype=root.dtype, device=root.device)
        own[torch.arange(len(rows)), rows] = root[rows]
        grads = torch.autograd.grad(
            seen.logits, list(parameters), own, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                yield name, grad.to("cpu", torch.float64).square().sum(0)


def _expect_all_covered(run: OpenedRun, layers: Sequence[WatchedLayer]) -> None:
    covered = {name for layer in layers for name in layer.parameter_names}
    if missing := [name for name in run.objective.vector.names if name not in covered]:
        raise ConfigurationError(
            f"KroneckerFactors: expected every trained parameter to be of a linear or plain convolutional layer that "
            f"is called once in a pass, with the examples first, and used nowhere else, got {missing[0]!r}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; use ExactDiagonal(), which takes any, or KohLiang(curvature='gauss_newton')"
        )


def _expect_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError("the Fisher matrix at the final model is not finite: the model gives NaN or infinity")
