r"""The Neumann series with whole products, restarted with a larger normaliser whenever it diverges.

With losses and risk divided by ``M``, the solution of :math:`A x = b`, ``A`` a product of two curvatures, does not
change, and the series

.. math:: x_0 = b / M^2, \qquad x_k = x_0 + x_{k-1} - A x_{k-1} / M^2

converges once :math:`M^2` exceeds half the largest eigenvalue. As in the paper, a divergence is noticed by the
differences, compared every second iteration; ``M`` then grows by a step and the series begins anew. Stopped after
few terms it is no solution but a damped one; `ConjugateGradient` reaches one in a tenth of the products.

References:
    Lyu et al., "Deeper Understanding of Black-box Predictions via Generalized Influence Functions", 2023
    (arXiv:2312.05586), Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.curvature.solvers import Solution, System
from lightning_sgdinf.errors import ConfigurationError, DivergenceError


@dataclass(frozen=True, slots=True)
class RestartedLissa:
    """The paper's modified LiSSA; see the module's text.

    Attributes:
        max_iterations: Terms of the series, at least 1; it is cut off there, converged or not.
        tolerance: Stop when the difference of two iterates is below this times the root of their length.
        normalizer: The first ``M``, > 0.
        step: By what it grows, > 0.
        max_restarts: More are an error.
    """

    max_iterations: int = 200
    tolerance: float = 1e-4
    normalizer: float = 1.0
    step: float = 0.5
    max_restarts: int = 1000

    def __post_init__(self) -> None:
        for name in ("max_iterations", "tolerance", "normalizer", "step"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"RestartedLissa({name}): expected a value > 0, got {getattr(self, name)}")

    def solve(self, system: System, b: Tensor) -> Solution:
        """Solve; see `Solver.solve`."""
        normalizer, products = self.normalizer, 0
        for _ in range(self.max_restarts):
            x, used = self._series(system, b, normalizer)
            products += used
            if x is not None:
                return Solution(x, products, system.residual(x, b))
            normalizer += self.step
        raise DivergenceError(
            f"LiSSA diverged with every normaliser from {self.normalizer:g} to {normalizer:g}: the curvature has "
            "larger eigenvalues, or negative ones. Take a larger step=, or ConjugateGradient."
        )

    def _series(self, system: System, b: Tensor, normalizer: float) -> tuple[Tensor | None, int]:
        """Return the sum of the series, ``None`` if it diverges, and the number of products."""
        scale = normalizer**2
        x, earlier = b / scale, 1e10
        small = self.tolerance * math.sqrt(b.shape[1])
        for iteration in range(1, self.max_iterations + 1):
            after = b / scale + x - system.apply(x) / scale
            difference = float((after - x).norm())
            x = after
            if difference < small:
                return x, iteration
            if iteration % 2 == 0:
                if not difference <= earlier:  # NaN compares false with everything
                    return None, iteration
                earlier = difference
        return (x if bool(torch.isfinite(x).all()) else None), self.max_iterations
