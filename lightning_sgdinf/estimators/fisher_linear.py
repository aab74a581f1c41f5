r"""The first-order cause of failures under an approximate posterior: one natural-gradient step, in closed form.

With the posterior approximated by a Gaussian of precision :math:`N (F + \lambda)` around the final model, ``F`` the
mean Fisher matrix, the log-likelihood of a training example falls by :math:`r_j = -\frac1N \langle \sum_F \nabla l,
(F + \lambda)^{-1} \nabla l_j\rangle` when failures are learnt. Up to the number of failures that is minus the estimate

.. math:: \frac1N \langle \nabla q, (F + \lambda)^{-1}\,\nabla l_j\rangle

of the change of their mean loss ``q`` had the example been left out, for any query ``q``; see also
`lightning_sgdinf.estimators.KohLiang` with ``curvature="gauss_newton"``, which solves with the whole matrix. Cost: the
Fisher matrix (one backward pass per class over the training set) and one pass for all the slopes.

Do not use it to choose what to delete by a set of failures: measured, such a ranking is at chance over the whole set,
whatever the curvature (docs/results/repair.md). With the loss of all validation examples it finds wrong labels.

References:
    Tanno, Pradier, Nori and Li, "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022
    (arXiv:2207.04806).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.curvature import Fisher, KroneckerFactors, TrainingCurvature
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators.direct import Estimate
from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True)
class FisherLinear:
    """Natural-gradient influence at the final model; see the module's text.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.estimators.FisherLinear
          fisher:
            _target_: lightning_sgdinf.curvature.ExactDiagonal
          damping: 0.01

    Attributes:
        fisher: The approximation; `KroneckerFactors` if ``None``.
        damping: Added to the Fisher matrix, > 0.
        batch_size: Examples per pass; 1 for losses that are not the mean over a batch.
    """

    fisher: Fisher = None  # type: ignore[assignment]  # a LightningCLI takes no object for a default of a protocol
    damping: float = 0.1
    batch_size: int = 500

    def __post_init__(self) -> None:
        if self.fisher is None:
            object.__setattr__(self, "fisher", KroneckerFactors())
        if not 0 < self.damping < inf:
            raise ConfigurationError(f"FisherLinear(damping): expected a value > 0, got {self.damping}")
        if self.batch_size < 1:
            raise ConfigurationError(
                f"FisherLinear(batch_size): expected a number of at least 1, got {self.batch_size}"
            )

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Solve once per query, then one slope per example.

        Raises:
            ConfigurationError: The run is not that of a classifier, or its layers are not of the matrix's kind.
            NonFiniteError: The final model's loss has no finite gradient.
        """
        objective = run.objective
        matrix = self.fisher.of(run)
        gradient = query.at_model(run)[1].params.to(objective.parameters[0].dtype)
        objective.load(run.model)
        like = run.log.step(len(run.log) - 1)
        training = TrainingCurvature(objective, like, run.examples, batch_size=self.batch_size)
        values = training.slopes(matrix.solve(gradient, self.damping)) / run.examples
        note = (
            f"A natural-gradient step at the final model, not a derivative of the run: {type(self.fisher).__name__}, "
            f"damping {self.damping:.3g}."
        )
        return Estimate(values, (note,))
