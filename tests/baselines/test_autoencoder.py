"""The autoencoder against its published architectures, and against reconstructions by the formula."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_sgdinf.baselines import Autoencoder
from lightning_sgdinf.baselines.autoencoder_networks import autoencoder, scaling
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from tests.baselines.blobs import ODD, N, Shaking, first_ids, points, rank, training_set


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [((1, 28, 28), 11_305), ((3, 32, 32), 80_451), ((1, 32, 32), 11_305), ((3, 96, 96), 80_451)],
)
def test_published_networks(shape: tuple[int, int, int], parameters: int) -> None:
    images = torch.rand(2, *shape)
    network = autoencoder(images)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(images).shape == images.shape


def test_sizes_inside_the_published_network() -> None:
    sides, x = [], torch.rand(1, 1, 28, 28)
    for layer in autoencoder(x):
        x = layer(x)
        sides.append(x.shape[-1])
    assert [now for before, now in pairwise(sides) if now != before] == [13, 11, 10, 23, 26, 28]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 32), (2, 28, 28), (7,), (5, 3)])
def test_a_dense_network_for_all_else(shape: tuple[int, ...]) -> None:
    examples = torch.rand(4, *shape)
    network = autoencoder(examples, hidden=(9, 4))
    widths = [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
    assert widths == [9, 4, 9, examples[0].numel()]
    assert network(examples).shape == examples.shape


def test_what_comes_out_lies_between_the_bounds_of_the_examples() -> None:
    images = torch.rand(8, 3, 12, 12) * torch.tensor([1.0, 2.0, 4.0])[:, None, None] - 0.5
    last = autoencoder(images)[-1]
    low, high = last(torch.full((1, 3, 1, 1), -99.0)), last(torch.full((1, 3, 1, 1), 99.0))
    assert torch.allclose(low[0], images.amin((0, 2, 3))[:, None, None])
    assert torch.allclose(high[0], images.amax((0, 2, 3))[:, None, None])


def test_scaling_is_that_of_the_paper() -> None:
    grey = torch.tensor([0.0, 0.25, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 12, 12)
    shift, scale = scaling(grey)
    assert torch.equal((grey - shift) / scale, (grey - 0.5) / 0.5)
    colour = torch.rand(5, 3, 4, 4)
    shift, scale = scaling(colour)
    scaled = (colour - shift) / scale
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(scaled.pow(2).mean((0, 2, 3)), torch.ones(3), atol=1e-5)
    assert torch.equal(scaling(torch.ones(3, 2))[1], torch.tensor(1.0))


class Constant(nn.Module):
    """Says the same of every example."""

    def __init__(self, examples: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros_like(examples[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


def test_the_error_is_that_of_the_best_constant() -> None:
    """Trained to the end, a constant is the mean, and the error the squared distance to it."""
    x = points()[0][:N]
    half_range = (x.max() - x.min()) / 2
    expected = -((x - x.mean(0)) / half_range).square().mean(1)
    result = rank(Autoencoder(network=Constant, epochs=150, batch_size=N, lr=0.02), validate=False)
    assert torch.allclose(result.values[:, 0], expected, rtol=1e-3, atol=1e-6)
    assert first_ids(result, 2) == set(ODD)


def test_compat_fits_on_validation_examples_augmented_anew() -> None:
    x, validation = points()[0][:N], points()[0][N:]
    half_range = (validation.max() - validation.min()) / 2
    expected = -((x - validation.mean(0)) / half_range).square().mean(1)
    fitted = Autoencoder(network=Constant, epochs=150, batch_size=N, lr=0.02, compat=True)
    assert torch.allclose(rank(fitted).values[:, 0], expected, rtol=1e-3, atol=1e-6)
    few = Autoencoder(epochs=2, compat=True)
    shaken = rank(few, dataset=Shaking(*training_set().tensors))
    assert not torch.allclose(shaken.values, rank(few).values, rtol=1e-2)
    with pytest.raises(ConfigurationError, match="validation loader"):
        rank(few, validate=False)


def test_odd_inputs_come_first() -> None:
    assert first_ids(rank(Autoencoder(epochs=30, batch_size=20), validate=False), 2) == set(ODD)


def test_images_by_the_published_network() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.linspace(0, 1, 12)[:, None].expand(12, 12)
    images = (rows + 0.05 * torch.randn(N, 1, 12, 12, generator=draw)).clamp(0, 1)
    images[7] = torch.rand(1, 12, 12, generator=draw)

    data = TensorDataset(images.double(), points()[1][:N])
    result = rank(Autoencoder(epochs=15, batch_size=20), dataset=data, validate=False)
    assert first_ids(result, 1) == {7}


def test_trouble_in_its_training_is_said() -> None:
    with pytest.raises(NonFiniteError, match="smaller lr"):
        rank(Autoencoder(network=Constant, lr=1e200, epochs=3))

    class Short(Constant):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :2]

    with pytest.raises(ConfigurationError, match=r"expected what it is given, shape \[60, 6\], got \[60, 2\]"):
        rank(Autoencoder(network=Short))


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Autoencoder(**arguments)
