r"""A LightningModule that tells two classes apart, with a penalty on its weights in the loss of every example.

:math:`l_j = \mathrm{BCE}(f(x_j), y_j) + \frac\alpha2\lVert\theta\rVert^2`, over all parameters. That the penalty is
counted to the examples is said by ``per_example_loss``: an example that is left out takes its share with it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from lightning_sgdinf.extras import require


class PenalisedClassifier(LightningModule):
    """Binary cross entropy of a network's single output, and a quadratic penalty.

    Args:
        network: Maps ``[B, D]`` to logits ``[B, 1]``.
        penalty: :math:`\\alpha`, at least 0.
        lr: Learning rate of SGD.
        decay: Divide it by the root of the step's number, counted from 1.
    """

    def __init__(self, network: nn.Module, *, penalty: float, lr: float, decay: bool = False) -> None:
        super().__init__()
        self.network = network
        self.penalty = penalty
        self.lr = lr
        self.decay = decay

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits ``[B]``."""
        return self.network(inputs)[:, 0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean loss of the batch."""
        inputs, labels = batch
        logits = self(inputs)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) + self._penalty()

    def per_example_loss(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of each example, ``[B]``, penalty included."""
        inputs, labels = batch
        logits = self(inputs)
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return each + self._penalty()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross entropy of the batch, without penalty."""
        inputs, labels = batch
        logits = self(inputs)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def configure_optimizers(self) -> Any:
        """Build SGD, its learning rate decaying if asked for."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        if not self.decay:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: (done + 1) ** -0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _penalty(self) -> Tensor:
        squares = [torch.sum(p.square()) for p in self.network.parameters()]
        return 0.5 * self.penalty * torch.stack(squares).sum()


def cross_validated_penalty(inputs: Tensor, labels: Tensor, *, seed: int) -> float:
    """Return the penalty of a logistic regression that five-fold cross-validation likes best.

    Args:
        inputs: ``[N, D]``.
        labels: ``[N]``, 0 or 1.
        seed: Of the solver.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    linear = require("sklearn.linear_model", extra="cli")
    model = linear.LogisticRegressionCV(cv=5, fit_intercept=False, random_state=seed, scoring="accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # defaults that later releases change; a weak penalty that takes long
        model.fit(inputs.double().numpy(), labels.numpy())
    strength = float(np.ravel(model.C_)[0])
    return 1 / (strength * len(labels))
