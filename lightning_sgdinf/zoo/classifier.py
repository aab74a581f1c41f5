"""A LightningModule that classifies with any network.

It is the kind one writes by hand; nothing in it knows of recording or influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchmetrics.classification import MulticlassAccuracy

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], Any]


def plain_sgd(params: Iterable[nn.Parameter]) -> Optimizer:
    """Build SGD with the learning rate of the SGD-influence paper, 0.05, and nothing else."""
    return SGD(params, lr=0.05)


class Classifier(LightningModule):
    """Cross entropy on a network's logits.

    Args:
        network: Maps images ``[B, C, H, W]`` to logits ``[B, classes]``.
        classes: Number of classes.
        optimizer: Makes the optimizer from the parameters, e.g. ``functools.partial(torch.optim.SGD, lr=0.1)``.
        scheduler: Makes a learning-rate scheduler from the optimizer.
        scheduler_interval: Whether the scheduler steps after every epoch or every optimizer step.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int,
        optimizer: OptimizerFactory = plain_sgd,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross entropy of the batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross entropy of the batch; log it and the accuracy."""
        return self._judge(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross entropy of the batch; log it and the accuracy."""
        return self._judge(batch, "test", self.test_accuracy)

    def _judge(self, batch: tuple[Tensor, Tensor], part: str, accuracy: MulticlassAccuracy) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        self.log(f"{part}_loss", loss, prog_bar=part == "val")
        self.log(f"{part}_accuracy", accuracy, prog_bar=part == "val")
        return loss

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with its scheduler if there is one."""
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": self.scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}
