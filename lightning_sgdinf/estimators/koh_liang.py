r"""Influence functions at the end of the run (Koh and Liang).

Were the final model the minimiser of the mean training loss :math:`F = \frac1N\sum_j l_j`, leaving example ``j`` out
would move it by :math:`\frac1N H^{-1}\nabla l_j`. The estimate of a query's change is

.. math:: \frac1N \langle \nabla q, (C + \lambda I)^{-1}\,\nabla l_j\rangle,

with ``C`` the Hessian of ``F`` or its Gauss-Newton matrix, one solve per query. Sign as everywhere: a loss query with a
negative value goes down without the example. Cost: the solver's number of products, each about three passes over the
training set, and one pass for all the slopes.

To :math:`l_j` belongs all that the example's weight multiplies: penalties that are part of ``training_step``'s loss are
in ``C``, and in :math:`\nabla l_j` where ``per_example_loss`` counts them to the examples. Weight decay of the
optimizer is not in the loss: add its coefficient to ``damping``. The comparison in the SGD-influence paper takes ``C``
and :math:`\nabla l_j` without the penalty and puts its strength in the damping: pass a model without penalty to the
runner and ``KohLiang(MomentumDescent(), damping=strength)``.

Buffers are constants (BatchNorm in eval mode). Not exact for any run that did not converge, and for a model that is not
convex the answer is that of a damped, local approximation: see `lightning_sgdinf.estimators.SgdInfluence` for this run.

References:
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017 (arXiv:1703.04730).
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (arXiv:1906.08473).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.curvature import ConjugateGradient, Solver, System, TrainingCurvature
from lightning_sgdinf.curvature.products import Kind
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators.direct import Estimate
from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True)
class KohLiang:
    """Influence functions at the final model; see the module's text.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.estimators.KohLiang
          damping: 0.01
          solver:
            _target_: lightning_sgdinf.curvature.Lissa
            depth: 5000

    Attributes:
        solver: Solves the system; `ConjugateGradient` if ``None``.
        damping: Added to the curvature's diagonal, at least 0. A network's Hessian needs some; a strictly convex loss
            needs none.
        curvature: ``"hessian"``, or ``"gauss_newton"``, which is never negative.
        batch_size: Examples per pass; 1 for losses that are not the mean over a batch. Also the batches of stochastic
            solvers.
    """

    solver: Solver = None  # type: ignore[assignment]  # a LightningCLI takes no object for a default of a protocol
    damping: float = 0.01
    curvature: Kind = "hessian"
    batch_size: int = 500

    def __post_init__(self) -> None:
        if self.solver is None:
            object.__setattr__(self, "solver", ConjugateGradient())
        if not 0 <= self.damping < inf:
            raise ConfigurationError(f"KohLiang(damping): expected a value >= 0, got {self.damping}")
        if self.curvature not in ("hessian", "gauss_newton"):
            raise ConfigurationError(
                f"KohLiang(curvature): expected 'hessian' or 'gauss_newton', got {self.curvature!r}"
            )
        if self.batch_size < 1:
            raise ConfigurationError(f"KohLiang(batch_size): expected a number of at least 1, got {self.batch_size}")

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Solve once per query, then one slope per example.

        Raises:
            DivergenceError: The solver got nowhere; says with which damping it might.
            ConfigurationError: The loss is not one whose curvature can be had this way.
            NonFiniteError: The final model's loss has no finite gradient.
        """
        objective = run.objective
        gradient = query.at_model(run)[1].params.to(objective.parameters[0].dtype)
        objective.load(run.model)
        training = TrainingCurvature(
            objective,
            run.log.step(len(run.log) - 1),
            run.examples,
            kind=self.curvature,
            batch_size=self.batch_size,
        )
        system = System(
            curvature=training.product,
            of_batch=training.of_batch,
            batches=training.batches,
            damping=self.damping,
        )
        solution = self.solver.solve(system, gradient)
        values = training.slopes(solution.values) / run.examples
        note = (
            f"Influence functions at the final model, not a derivative of the run: {type(self.solver).__name__}, "
            f"{solution.iterations} iterations, relative residual {solution.residual:.1e}, damping {self.damping:.3g}."
        )
        return Estimate(values, (note,))
