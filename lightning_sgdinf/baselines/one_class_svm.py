"""A ranking by a one-class support vector machine: examples on the far side of a boundary around most of them first.

Looks at features only, so it finds odd inputs and not wrong labels. Cost: a forward pass over the training set, and the
machine: between the square and the cube of the number of examples, or, above a size, one stochastic pass after another
over features of a random sample of kernel columns (Nystroem), linear in that number.

References:
    Schoelkopf, Platt, Shawe-Taylor, Smola and Williamson, "Estimating the Support of a High-Dimensional Distribution",
    Neural Computation 2001.
    Williams and Seeger, "Using the Nystroem Method to Speed Up Kernel Machines", NeurIPS 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.baselines.features import PENULTIMATE, scored_and_fitted
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.replay import OpenedRun


@dataclass(frozen=True, slots=True)
class OneClassSvm:
    """scikit-learn's one-class SVM with a Gaussian kernel on features of the final model.

    In a configuration::

        _target_: lightning_sgdinf.baselines.OneClassSvm
        nu: 0.5

    Attributes:
        nu: Upper bound of the share of fitted examples beyond the boundary, in ``(0, 1]``.
        gamma: Of the kernel ``exp(-gamma |x - y|^2)``, above 0; ``None`` for one over the number of features and their
            variance.
        exact_up_to: Most fitted examples for the exact machine; above, ``SGDOneClassSVM`` on Nystroem features takes
            its place. 0 for always that one.
        columns: Number of Nystroem features.
        features: ``"penultimate"``, ``"inputs"`` or the name of a sub-module; see
            `lightning_sgdinf.baselines.features.features`.
        compat: Fit on the validation examples in place of the training examples themselves.
        batch_size: Examples per forward pass.
        seed: Of the sample of columns and of the stochastic passes.
        title: Name of the values, for tables and axes.
    """

    nu: float = 0.5
    gamma: float | None = None
    exact_up_to: int = 5000
    columns: int = 300
    features: str = PENULTIMATE
    compat: bool = False
    batch_size: int = 500
    seed: int = 0
    title = "one-class SVM"

    def __post_init__(self) -> None:
        if not 0 < self.nu <= 1:
            raise ConfigurationError(f"OneClassSvm(nu): expected a share in (0, 1], got {self.nu}")
        if self.gamma is not None and not self.gamma > 0:
            raise ConfigurationError(f"OneClassSvm(gamma): expected a number above 0, or None, got {self.gamma}")
        if self.exact_up_to < 0 or self.columns < 1:
            raise ConfigurationError(
                f"OneClassSvm: expected exact_up_to >= 0 and columns >= 1, got {self.exact_up_to} and {self.columns}"
            )

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``: scikit-learn's ``score_samples``, low outside.

        Raises:
            MissingExtraError: scikit-learn is not installed.
            ConfigurationError: No such features, or ``compat`` without a validation loader.
            NonFiniteError: A feature is NaN or infinite.
        """
        svm = require("sklearn.svm", extra="cli")
        scored, fitted = scored_and_fitted(
            run, self.features, compat=self.compat, batch_size=self.batch_size, seed=self.seed
        )
        gamma = self.gamma if self.gamma is not None else _gamma(fitted)
        if len(fitted) <= self.exact_up_to:
            machine: Any = svm.OneClassSVM(nu=self.nu, gamma=gamma)
        else:
            machine = self._stochastic(gamma, len(fitted))
        return torch.from_numpy(machine.fit(fitted).score_samples(scored))

    def _stochastic(self, gamma: float, count: int) -> Any:
        linear_model = require("sklearn.linear_model", extra="cli")
        approximation = require("sklearn.kernel_approximation", extra="cli")
        pipeline = require("sklearn.pipeline", extra="cli")
        columns = min(self.columns, count)
        return pipeline.make_pipeline(
            approximation.Nystroem(gamma=gamma, n_components=columns, random_state=self.seed),
            linear_model.SGDOneClassSVM(nu=self.nu, random_state=self.seed),
        )


def _gamma(fitted: np.ndarray) -> float:
    """Return the ``gamma`` that scikit-learn calls ``"scale"``, which its Nystroem does not know."""
    variance = float(fitted.var())
    return 1.0 / (fitted.shape[1] * variance) if variance else 1.0
