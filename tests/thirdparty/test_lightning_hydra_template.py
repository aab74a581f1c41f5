"""A module as lightning-hydra-template has it: BatchNorm under Adam in float32, compiled in ``setup``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.thirdparty.library_runs import QUIET, Fitted, scored

torchmetrics = pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, CLASSES = 8, 10


class DigitsModule(L.LightningModule):
    """Its optimizer and scheduler are partial functions among the hyperparameters; metrics are parts of it."""

    def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any, compile: bool) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.train_loss, self.val_loss = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
        self.val_acc = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)
        self.val_acc_best = torchmetrics.MaxMetric()

    def setup(self, stage: str) -> None:
        if self.hparams["compile"] and stage == "fit":
            self.net = torch.compile(self.net, backend="eager")

    def on_train_start(self) -> None:
        self.val_acc_best.reset()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.train_loss(loss)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        z = self.net(batch[0])
        self.val_loss(F.cross_entropy(z, batch[1]))
        self.val_acc(z.argmax(1), batch[1])
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute())

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams["optimizer"](params=self.trainer.model.parameters())
        scheduler = self.hparams["scheduler"](optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def dense_net() -> nn.Sequential:
    def layer(width: int) -> list[nn.Module]:
        return [nn.Linear(width, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]

    return nn.Sequential(nn.Flatten(), *layer(16), *layer(WIDTH), *layer(WIDTH), nn.Linear(WIDTH, CLASSES))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_biases_before_batch_norm_under_adam(compiled: bool, tmp_path: Path) -> None:
    """Their gradient is rounding, of which Adam makes steps: held as recorded, and the rest is certified."""
    x = torch.randn(48, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.flatten(1)[:, :CLASSES].argmax(1))
    train, validation = (torch.utils.data.Subset(data, range(*ends)) for ends in ((0, 32), (32, 48)))

    def fit(callbacks: list[Any]) -> Fitted:
        plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=1)
        module = DigitsModule(dense_net(), partial(torch.optim.Adam, lr=0.01), plateau, compiled)
        loaders = DataLoader(train, batch_size=8, shuffle=True), DataLoader(validation, batch_size=16)
        trainer = L.Trainer(max_epochs=3, callbacks=callbacks, **QUIET)
        trainer.fit(module, *loaders)
        return Fitted(module=module, trainer=trainer, train=loaders[0], validation=loaders[1])

    _, scores = scored(fit, tmp_path / "run.tlog")
    certificate = scores.certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.relative_error < 2e-2
    assert any("elements of net" in n and "zero but for rounding" in n for n in certificate.notes)
