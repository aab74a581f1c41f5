r"""Solvers of :math:`(C + \lambda I)\,x = b` that know the curvature ``C`` by its products only.

All take several right-hand sides at once, test for NaN explicitly, and stop with a `DivergenceError` that says at which
iteration, with which residual, and what damping to try: the curvature's extreme eigenvalues are estimated for that.

* `ConjugateGradient`: the one to use; needs a positive definite :math:`C + \lambda I` and notices when it is not.
* `Dense`: exact, for small models.
* `Lissa`: stochastic, one batch per iteration; for data sets too large for whole passes.
* `MomentumDescent`: gradient descent on the quadratic, as the SGD-influence paper's experiments do it.

References:
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017 (arXiv:1703.04730).
    Agarwal, Bullins and Hazan, "Second-Order Stochastic Optimization for Machine Learning in Linear Time", JMLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, DivergenceError

GROWTH = 100.0
"""Residual, as a multiple of the right-hand side, at which an iteration counts as diverged."""

_POWER_ITERATIONS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    r"""The linear system :math:`(C + \lambda I)\,x = b` but for ``b``.

    Attributes:
        curvature: Products with ``C``: from ``[Q, P]`` to ``[Q, P]``.
        of_batch: Products with the curvature of one batch, whose mean is ``C``: from ``[Q, P]`` and its number.
        batches: Number of batches.
        damping: :math:`\lambda \ge 0`.
    """

    curvature: Callable[[Tensor], Tensor]
    of_batch: Callable[[Tensor, int], Tensor]
    batches: int
    damping: float

    def apply(self, x: Tensor) -> Tensor:
        r"""Return :math:`(C + \lambda I)\,x`."""
        return self.curvature(x).add(x, alpha=self.damping)

    def apply_batch(self, x: Tensor, number: int) -> Tensor:
        r"""Return the same with one batch's curvature in the place of ``C``."""
        return self.of_batch(x, number).add(x, alpha=self.damping)

    def residual(self, x: Tensor, b: Tensor) -> float:
        r"""Return the largest :math:`\lVert b - (C + \lambda I)x\rVert / \lVert b\rVert` of any right-hand side."""
        return float(_relative(b - self.apply(x), b).max())


@dataclass(frozen=True, slots=True)
class Solution:
    """An approximate solution of a `System`.

    Attributes:
        values: ``x``, ``[Q, P]``.
        iterations: Number of iterations; 0 for a direct solver.
        residual: Largest relative residual of any right-hand side, measured at the end.
    """

    values: Tensor
    iterations: int
    residual: float


class Solver(Protocol):
    """Solves a `System`."""

    def solve(self, system: System, b: Tensor) -> Solution:
        """Solve for right-hand sides ``[Q, P]``.

        Raises:
            DivergenceError: It did not get there.
        """
        ...


@dataclass(frozen=True, slots=True)
class ConjugateGradient:
    """The method of conjugate gradients, all right-hand sides in step.

    Attributes:
        tolerance: Relative residual to stop at, in ``(0, 1)``.
        max_iterations: At least 1; a system not solved by then is an error.
    """

    tolerance: float = 1e-6
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        _require("ConjugateGradient(tolerance)", 0 < self.tolerance < 1, "in (0, 1)", self.tolerance)
        _require("ConjugateGradient(max_iterations)", self.max_iterations >= 1, ">= 1", self.max_iterations)

    def solve(self, system: System, b: Tensor) -> Solution:
        """Solve; see `Solver.solve`. Negative curvature is an error of its own."""
        x = torch.zeros_like(b)
        r, p = b.clone(), b.clone()
        square = (r * r).sum(1, keepdim=True)
        target = self.tolerance**2 * (b * b).sum(1, keepdim=True)
        for iteration in range(self.max_iterations):
            going = square > target
            if not bool(going.any()):
                return Solution(x, iteration, system.residual(x, b))
            moved = system.apply(p)
            bend = (p * moved).sum(1, keepdim=True)
            if not bool((bend[going] > 0).all()):
                what = "met negative curvature" if bool(torch.isfinite(bend).all()) else "met a curvature that is NaN"
                met = float((bend / (p * p).sum(1, keepdim=True))[going[:, 0]].min()) - system.damping
                raise _diverged(f"conjugate gradient {what}", iteration, _worst(square, b), system, b, met=met)
            length = torch.where(going, square / torch.where(going, bend, 1), 0)
            x, r = x + length * p, r - length * moved
            after = (r * r).sum(1, keepdim=True)
            p = r + torch.where(going, after / torch.where(going, square, 1), 0) * p
            square = after
        if bool((square <= target).all()):
            return Solution(x, self.max_iterations, system.residual(x, b))
        raise _diverged(
            f"conjugate gradient did not reach a residual of {self.tolerance:.0e}",
            self.max_iterations,
            _worst(square, b),
            system,
            b,
            ", more max_iterations or a larger tolerance",
        )


@dataclass(frozen=True, slots=True)
class Dense:
    """The whole matrix, by ``P`` products, and one factorisation in float64.

    Attributes:
        max_parameters: Refuse larger models; ``P`` parameters take ``16 P^2`` bytes.
    """

    max_parameters: int = 10_000

    def solve(self, system: System, b: Tensor) -> Solution:
        """Solve; see `Solver.solve`. An indefinite system is solved, too."""
        size = b.shape[1]
        if size > self.max_parameters:
            raise ConfigurationError(
                f"Dense: the curvature of {size:,} parameters takes {16 * size**2 / 2**30:.1f} GiB and {size:,} "
                f"products; max_parameters is {self.max_parameters:,}. Use ConjugateGradient, or raise max_parameters."
            )
        matrix = torch.zeros(size, size, dtype=torch.float64, device=b.device)
        for start in range(0, size, 256):
            units = torch.eye(size, dtype=b.dtype, device=b.device)[start : start + 256]
            matrix[start : start + 256] = system.apply(units)
        matrix = (matrix + matrix.T) / 2
        x, info = torch.linalg.solve_ex(matrix, b.double().T)
        x = x.T.to(b.dtype)
        residual = system.residual(x, b) if int(info) == 0 else math.inf
        if not residual <= 1e-2:
            raise _diverged("the curvature is singular to rounding", 0, residual, system, b)
        return Solution(x, 0, residual)


@dataclass(frozen=True, slots=True)
class Lissa:
    r"""The Neumann series with one random batch per term: :math:`x \leftarrow x + (b - (C_k + \lambda I)\,x) / scale`.

    Attributes:
        depth: Iterations, at least 1.
        repeats: Independent runs that are averaged, at least 1.
        scale: Must exceed half the largest eigenvalue of any batch's curvature; ``None`` takes one and a half times the
            largest of the whole.
        seed: Of the choice of batches.
    """

    depth: int = 1000
    repeats: int = 1
    scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require("Lissa(depth)", self.depth >= 1, ">= 1", self.depth)
        _require("Lissa(repeats)", self.repeats >= 1, ">= 1", self.repeats)
        _require("Lissa(scale)", self.scale is None or self.scale > 0, "None or > 0", self.scale)

    def solve(self, system: System, b: Tensor) -> Solution:
        """Solve; see `Solver.solve`."""
        generator = torch.Generator().manual_seed(self.seed)
        scale = self.scale
        if scale is None:
            scale = 1.5 * (extreme_eigenvalues(system.curvature, b)[1] + system.damping)
        total = torch.zeros_like(b)
        for _ in range(self.repeats):
            x = b / scale
            for iteration in range(self.depth):
                number = int(torch.randint(system.batches, (), generator=generator))
                residuals = b - system.apply_batch(x, number)
                _check_growth("LiSSA", iteration, residuals, b, system, f", or a larger scale than {scale:.3g}")
                x = x + residuals / scale
            total += x
        x = total / self.repeats
        residual = system.residual(x, b)
        if not residual <= 1:
            raise _diverged("LiSSA ended farther from a solution than zero is", self.depth, residual, system, b)
        return Solution(x, self.depth * self.repeats, residual)


@dataclass(frozen=True, slots=True)
class MomentumDescent:
    r"""Gradient descent with momentum on :math:`\frac12 x^T(C + \lambda I)x - b^Tx`, one batch's curvature a step.

    The defaults are those of the SGD-influence paper's comparison on small models, whose batch is the whole training
    set. It stops after its epochs, converged or not.

    Attributes:
        lr: Step size, > 0.
        momentum: In ``[0, 1)``.
        epochs: Passes over the batches, at least 1.
        start: Initial ``x``: ``"query"`` is ``b``.
    """

    lr: float = 0.01
    momentum: float = 0.9
    epochs: int = 100
    start: Literal["query", "zero"] = "query"

    def __post_init__(self) -> None:
        _require("MomentumDescent(lr)", self.lr > 0, "> 0", self.lr)
        _require("MomentumDescent(momentum)", 0 <= self.momentum < 1, "in [0, 1)", self.momentum)
        _require("MomentumDescent(epochs)", self.epochs >= 1, ">= 1", self.epochs)
        _require("MomentumDescent(start)", self.start in ("query", "zero"), "'query' or 'zero'", self.start)

    def solve(self, system: System, b: Tensor) -> Solution:
        """Solve; see `Solver.solve`."""
        x = b.clone() if self.start == "query" else torch.zeros_like(b)
        velocity = torch.zeros_like(b)
        for iteration in range(self.epochs * system.batches):
            slope = system.apply_batch(x, iteration % system.batches) - b
            _check_growth("gradient descent", iteration, slope, b, system, f", or a smaller lr than {self.lr:.3g}")
            velocity = self.momentum * velocity + slope
            x = x - self.lr * velocity
        residual = system.residual(x, b)
        if not math.isfinite(residual):
            raise _diverged("gradient descent diverged", self.epochs * system.batches, residual, system, b)
        return Solution(x, self.epochs * system.batches, residual)


def extreme_eigenvalues(curvature: Callable[[Tensor], Tensor], like: Tensor) -> tuple[float, float]:
    """Estimate a symmetric operator's smallest and largest eigenvalue by power iterations.

    Args:
        curvature: Products with it, from ``[1, P]`` to ``[1, P]``.
        like: A tensor ``[Q, P]`` of the right size, dtype and device.

    Returns:
        Both lie inside the true range; NaN if a product is not finite.
    """
    far = _power(curvature, like)
    other = far + _power(lambda v: curvature(v) - far * v, like)
    return min(far, other), max(far, other)


def _power(operator: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Estimate the eigenvalue of largest magnitude."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, like.shape[1], generator=generator, dtype=torch.float64).to(like)
    value = 0.0
    for _ in range(_POWER_ITERATIONS):
        v = v / v.norm()
        moved = operator(v)
        value = float((v * moved).sum())
        if not moved.norm() > 0:  # the zero operator, or NaN
            break
        v = moved
    return value


def _relative(residuals: Tensor, b: Tensor) -> Tensor:
    return residuals.norm(dim=1) / b.norm(dim=1).clamp_min(torch.finfo(b.dtype).tiny)


def _worst(square: Tensor, b: Tensor) -> float:
    return float((square[:, 0].sqrt() / b.norm(dim=1)).max())


def _check_growth(what: str, iteration: int, residuals: Tensor, b: Tensor, system: System, or_else: str) -> None:
    residual = float(_relative(residuals, b).max())
    if not residual <= GROWTH:  # NaN compares false with everything
        raise _diverged(f"{what} diverged", iteration, residual, system, b, or_else)


def _diverged(
    what: str,
    iteration: int,
    residual: float,
    system: System,
    b: Tensor,
    or_else: str = "",
    met: float = math.inf,
) -> DivergenceError:
    """Make the error with a damping to try, by some sixty products; ``met``: a curvature along some direction."""
    outcome = f"{what}: iteration {iteration}, relative residual {residual:.1e}, damping {system.damping:.3g}."
    low, high = extreme_eigenvalues(system.curvature, b)
    low = min(low, met)  # power iterations seldom find the smallest of eigenvalues near 0
    if not (math.isfinite(low) and math.isfinite(high)):
        return DivergenceError(f"{outcome} The curvature itself is not finite: the final model gives NaN or infinity.")
    wanted = 2 * abs(low) if low + system.damping <= 0 else max(10 * system.damping, high / 1000)
    advice = f"The curvature's eigenvalues reach from about {low:.3g} to {high:.3g}: try damping={wanted:.2g}{or_else}"
    return DivergenceError(f"{outcome} {advice}.")


def _require(name: str, fine: bool, wanted: str, got: object) -> None:
    if not fine:
        raise ConfigurationError(f"{name}: expected a value {wanted}, got {got!r}")
