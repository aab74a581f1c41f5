"""Networks and augmentation of the experiments, trained with the recorder and walked back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import lightning as L
import pytest
import torch
from torch import nn

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.zoo import Classifier, ImageData, LabelledImages, cifar_net, mnist_net, six_conv_net

STEPS = 4


class Noise:
    """Random images as bytes, 16 of them and three classes."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (16, *self.shape), generator=generator, dtype=torch.uint8)
        return LabelledImages(images=images, labels=torch.arange(16) % 3, class_names=("a", "b", "c")), None


@pytest.mark.parametrize(
    ("network", "shape", "precision"),
    [
        (mnist_net, (1, 16, 16), "64-true"),
        (mnist_net, (3, 16, 16), "32-true"),
        (cifar_net, (3, 8, 8), "64-true"),
        (six_conv_net, (1, 8, 8), "64-true"),
    ],
)
def test_every_network_is_replayed_with_crops_and_flips(
    network: Callable[[tuple[int, int, int], int], nn.Module],
    shape: tuple[int, int, int],
    precision: Literal["64-true", "32-true"],
    tmp_path: Path,
) -> None:
    data = ImageData(
        Noise(shape),
        val_size=4,
        test_size=2,
        train_size=10,
        crop_padding=2,
        flip=True,
        mean=[0.5] * shape[0],
        std=[0.25] * shape[0],
        batch_size=5,
    )
    L.seed_everything(0, verbose=False)
    model = Classifier(network(data.image_shape, 3), classes=3)
    trainer = L.Trainer(
        max_epochs=STEPS // 2,
        precision=precision,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    certificate = runner.run(model, datamodule=data, log=tmp_path / "run.tlog").certificate
    assert certificate is not None
    assert certificate.step_replay is not None
    assert certificate.gradient_check is not None
    assert certificate.step_replay.bitwise == certificate.step_replay.steps == STEPS
    assert certificate.gradient_check.relative_error < (1e-6 if precision == "64-true" else 1e-2)
