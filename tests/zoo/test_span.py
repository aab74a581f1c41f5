"""Training in coordinates of the inputs' span against training in all dimensions, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import BinaryData, BinaryExamples, enter_span, mlp, span_of

M, D, STEPS = 9, 40, 30


def path(network: nn.Module, x: Tensor, y: Tensor, without: int | None) -> Tensor:
    """Outputs for all inputs after every step of penalised gradient descent with momentum, on the first six."""
    parameters = list(network.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    weights = torch.ones(6, dtype=x.dtype)
    if without is not None:
        weights[without] = 0
    seen = []
    for _ in range(STEPS):
        losses = F.binary_cross_entropy_with_logits(network(x[:6])[:, 0], y[:6], reduction="none")
        penalty = 0.05 * torch.stack([(p * p).sum() for p in parameters]).sum()
        grads = torch.autograd.grad((weights * (losses + penalty)).mean(), parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, velocities, grads, strict=True):
                v.mul_(0.8).add_(g)
                p.sub_(0.3 * v)
            seen.append(network(x)[:, 0].clone())
    return torch.stack(seen)


@pytest.mark.parametrize("without", [None, 2])
def test_the_path_of_training_is_the_same(without: int | None) -> None:
    draw = np.random.default_rng(1)
    inputs = draw.standard_normal((M, D))
    inputs[4] = inputs[3]  # the span has fewer dimensions than there are inputs
    y = torch.tensor(draw.integers(0, 2, M), dtype=torch.float64)
    basis = span_of(inputs)
    assert basis.shape == (D, M)
    assert np.allclose(basis.T @ basis, np.eye(M), atol=1e-12)
    paths = []
    for vectors in (inputs, inputs @ basis):
        torch.manual_seed(0)
        network = mlp((D,), 1, hidden=(5,), activation="tanh").double()
        if vectors is not inputs:
            enter_span(network, torch.from_numpy(basis))
        paths.append(path(network, torch.from_numpy(vectors), y, without))
    assert (paths[0][-1] - paths[0][0]).abs().max() > 0.1
    assert (paths[0] - paths[1]).abs().max() < 1e-12


def test_long_vectors_are_given_in_their_span() -> None:
    draw = np.random.default_rng(2)
    examples = BinaryExamples(
        inputs=draw.standard_normal((30, D)), labels=draw.integers(0, 2, 30), class_names=("a", "b")
    )
    data = BinaryData(examples, size=5, seed=1)
    assert data.basis is not None
    assert (data.dimensions, data.basis.shape, data.val_set.inputs.shape) == (D, (D, 15), (5, 15))
    x, rest = train_test_split(examples.inputs, train_size=5, test_size=10, random_state=1)
    val, _ = train_test_split(rest, train_size=5, test_size=5, random_state=2)
    scaler = StandardScaler().fit(x)
    expected = scaler.transform(val) @ scaler.transform(x).T
    assert np.allclose(data.val_set.inputs @ data.train_set.inputs.T, expected, atol=1e-4)
    assert BinaryData(examples, size=10).basis is not None
    wide = BinaryExamples(inputs=examples.inputs[:, :30], labels=examples.labels, class_names=("a", "b"))
    assert BinaryData(wide, size=10).basis is None


def test_only_a_linear_layer_can_take_coordinates() -> None:
    basis = torch.eye(6, 3, dtype=torch.float64)
    for network in (nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(5, 1), nn.Flatten()):
        with pytest.raises(ConfigurationError, match="begins with a linear layer of 6 inputs"):
            enter_span(network, basis)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    enter_span(network, basis)
    assert network[1].in_features == 3
