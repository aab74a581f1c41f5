from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import (
    Classifier,
    Digits,
    ImageData,
    cifar_net,
    logistic_regression,
    mlp,
    mnist_net,
    six_conv_net,
    small_cnn,
    tiny_net,
)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "count"),
    [
        (logistic_regression, (1, 28, 28), 7_850),
        (partial(mlp, hidden=(8, 8)), (1, 8, 8), 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10),
        (small_cnn, (1, 8, 8), 80 + 1_168 + 2_570),
        (mnist_net, (1, 28, 28), 13_750),
        (tiny_net, (1, 28, 28), 398_090),
        (cifar_net, (3, 32, 32), 307_946),
        (six_conv_net, (3, 32, 32), 307_946),
        (six_conv_net, (1, 28, 28), 307_370),
        (six_conv_net, (3, 96, 96), 307_946 + 128 * 10 * (12 * 12 - 4 * 4)),
        (six_conv_net, (1, 20, 140), 307_370 + 128 * 10 * (4 * 16 - 4 * 4)),
    ],
)
def test_networks_have_the_published_sizes(network, shape: tuple[int, int, int], count: int) -> None:
    built = network(shape, 10)
    assert parameters(built) == count
    assert built(torch.rand(2, *shape)).shape == (2, 10)


def test_mlp_without_hidden_layers_is_logistic_regression() -> None:
    assert parameters(mlp((1, 8, 8), 10, hidden=())) == parameters(logistic_regression((1, 8, 8), 10))


def test_mnist_net_takes_other_sizes() -> None:
    assert mnist_net((3, 32, 24), 4)(torch.rand(1, 3, 32, 24)).shape == (1, 4)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 8, 200), (32, 128)), ((2, 32, 16), (32, 32)), ((1, 130, 64), (128, 64))]
)
def test_sides_of_images_are_brought_within_bounds(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    network = six_conv_net(shape, 3)
    flat = torch.full((2, *shape), 0.25)
    assert network[0](flat).shape == (2, shape[0], *size)
    assert torch.allclose(network[0](flat), torch.tensor(0.25))


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="one of relu, tanh, gelu, got 'rleu'"):
        mlp((1, 8, 8), 10, activation="rleu")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="at least 16 x 16"):
        mnist_net((1, 8, 8), 10)
    with pytest.raises(ConfigurationError, match="at least 8 x 8"):
        cifar_net((1, 4, 8), 10)


def test_classifier_learns_the_digits(tmp_path) -> None:
    L.seed_everything(0, verbose=False)
    data = ImageData(Digits(), val_size=200, test_size=200, batch_size=32)
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    model = Classifier(
        logistic_regression(data.image_shape, 10),
        classes=10,
        optimizer=partial(torch.optim.SGD, lr=0.5),
        scheduler=scheduler,
    )
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)
    measured = trainer.test(model, datamodule=data, verbose=False)[0]
    assert measured["test_accuracy"] > 0.85
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 / 16)
