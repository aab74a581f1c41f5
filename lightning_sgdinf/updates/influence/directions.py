r"""Directions in which a set of examples is forgotten, each a natural step: what the minimiser would move by.

With ``g`` the set's gradient times its share (`InfluenceProblem`), ``H`` the retained examples' curvature, ``J`` the
parameters that may change, and :math:`\lambda` the damping:

* `OriginalDirection`, Koh and Liang's: :math:`(H + \lambda)^{-1} g` in all parameters.
* `ProjectingDirection`: the same, but only its entries in ``J``.
* `FreezingDirection`: :math:`(H_{JJ} + \lambda)^{-1} g_J`.
* `GeneralizedDirection`: :math:`(H_J^T H_J + \lambda^2)^{-1} H_J^T g`, :math:`H_J` the columns ``J`` of ``H``: the step
  of ``J`` alone that comes nearest, in least squares, to what all parameters would do.
* `SecondOrderDirection`: Koh and Liang's with ``H`` of *all* examples, :math:`I_1`, less
  :math:`\frac{p}{1-p}(I - H^{-1} H_C) I_1`, ``p`` the set's part of the data. With ``H`` of the retained examples the
  first order is the Newton step already, and no second order is needed.
* `PlainGradient`: ``g_J`` itself.

A truncated series (`lightning_sgdinf.curvature.RestartedLissa`) in the place of a solution acts as a damping.

References:
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017 (arXiv:1703.04730).
    Basu, You and Feizi, "On Second-Order Group Influence Functions", ICML 2020 (arXiv:1911.00418); the sign of the
    second order is here that of removal.
    Lyu et al., "Deeper Understanding of Black-box Predictions via Generalized Influence Functions", 2023
    (arXiv:2312.05586).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from torch import Tensor

from lightning_sgdinf.curvature import ConjugateGradient, Solver
from lightning_sgdinf.curvature.products import Kind
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.updates.influence.problem import InfluenceProblem


def _solver() -> Solver:
    return ConjugateGradient(tolerance=1e-3, max_iterations=200)


class InfluenceDirection(Protocol):
    """Computes a direction. A frozen value."""

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the natural step, ``[P]``, zero outside of the problem's mask unless the direction ignores it.

        Raises:
            DivergenceError: The solver got nowhere, e.g. for negative curvature; says with which damping it might.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainGradient:
    """The gradient of the set's loss; no curvature."""

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the step; see `InfluenceDirection.solve`."""
        return problem.gradient * problem.share * problem.mask.chosen


@dataclass(frozen=True, slots=True)
class _Damped:
    """A direction by a damped curvature.

    Attributes:
        damping: Added to the diagonal, at least 0.
        curvature: ``"gauss_newton"``, which is never negative, or ``"hessian"``.
        solver: Solves the system.
    """

    damping: float = 0.1
    curvature: Kind = "gauss_newton"
    solver: Solver = field(default_factory=_solver)

    def __post_init__(self) -> None:
        if not 0 <= self.damping < inf:
            raise ConfigurationError(f"{type(self).__name__}(damping): expected a value >= 0, got {self.damping}")
        if self.curvature not in ("hessian", "gauss_newton"):
            raise ConfigurationError(
                f"{type(self).__name__}(curvature): expected 'hessian' or 'gauss_newton', got {self.curvature!r}"
            )


@dataclass(frozen=True, slots=True)
class OriginalDirection(_Damped):
    """Koh and Liang's influence, in all parameters whatever the mask; attributes as of `FreezingDirection`."""

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the step; see `InfluenceDirection.solve`."""
        return problem.solve(
            lambda rows: problem.product(self.curvature, rows),
            problem.gradient * problem.share,
            damping=self.damping,
            solver=self.solver,
        )


@dataclass(frozen=True, slots=True)
class ProjectingDirection(_Damped):
    """Koh and Liang's influence, cut down to the chosen parameters; attributes as of `FreezingDirection`."""

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the step; see `InfluenceDirection.solve`."""
        return OriginalDirection(self.damping, self.curvature, self.solver).solve(problem) * problem.mask.chosen


@dataclass(frozen=True, slots=True)
class FreezingDirection(_Damped):
    """The influence in the chosen parameters with the others held fast.

    Attributes:
        damping: Added to the diagonal, at least 0.
        curvature: ``"gauss_newton"``, which is never negative, or ``"hessian"``.
        solver: Solves the system.
    """

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the step; see `InfluenceDirection.solve`."""
        return problem.solve(
            lambda rows: problem.product(self.curvature, rows),
            problem.gradient * problem.share,
            damping=self.damping,
            solver=self.solver,
            mask=problem.mask,
        )


@dataclass(frozen=True, slots=True)
class GeneralizedDirection(_Damped):
    """The generalized influence function: two products an iteration; attributes as of `FreezingDirection`.

    The true Hessian is its default: the system is positive whatever the sign of the curvature.
    """

    curvature: Kind = "hessian"

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the step; see `InfluenceDirection.solve`."""

        def product(rows: Tensor) -> Tensor:
            return problem.product(self.curvature, rows)

        return problem.solve(
            lambda rows: product(product(rows)),
            product((problem.gradient * problem.share)[None])[0],
            damping=self.damping**2,
            solver=self.solver,
            mask=problem.mask,
        )


@dataclass(frozen=True, slots=True)
class SecondOrderDirection(_Damped):
    """The second-order influence of a group, in all parameters whatever the mask; attributes as of `FreezingDirection`.

    It is for sets that are left out.
    """

    def solve(self, problem: InfluenceProblem) -> Tensor:
        """Return the step; see `InfluenceDirection.solve`."""
        share = problem.share
        part = share / (1 + share)

        def of_all(rows: Tensor) -> Tensor:
            retained, own = problem.product(self.curvature, rows), problem.product_of_set(self.curvature, rows)
            return (1 - part) * retained + part * own

        def inverse(b: Tensor) -> Tensor:
            return problem.solve(of_all, b, damping=self.damping, solver=self.solver)

        first = inverse(problem.gradient * share)
        own = problem.product_of_set(self.curvature, first[None])[0]
        return first - share * (first - inverse(own))
