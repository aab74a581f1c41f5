"""A module has its own tensors afterwards, in every place and under every name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_sgdinf.held_tensors import call_with, holding


class Places(nn.Module):
    """One part in two places, one tensor under two names, a recurrent part, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = self.second = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight
        self.recurrent = nn.GRU(3, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(self.again(self.second(self.first(x))) + self.shift)[0]


class Chain(Places):
    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(self.first(x))) + self.shift


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def test_every_place_has_the_others_inside_and_its_own_after() -> None:
    module, x = Places(), torch.randn(2, 3)
    own = tensors(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in tensors(other).values():
            tensor.mul_(2)
    expected, before = other(x), module(x)
    assert torch.equal(call_with(module, tensors(other), x), expected)
    assert not torch.equal(expected, before)
    assert all(tensors(module)[name] is tensor for name, tensor in own.items())
    assert module.second.weight is module.again.weight is own["first.weight"]
    assert torch.equal(module(x), before)
    assert module.recurrent._flat_weights[0] is own["recurrent.weight_ih_l0"]


def test_after_a_vectorised_pass_the_module_can_be_copied_and_saved() -> None:
    module, x = Chain(), torch.randn(2, 3)
    own = {n: t.detach().clone() for n, t in tensors(module).items()}
    stack = {n: torch.stack([t, 2 * t]) for n, t in own.items()}
    values = torch.func.vmap(lambda t: call_with(module, t, x))(stack)
    assert torch.allclose(values[0], module(x), atol=1e-6)
    for kept in (module, copy.deepcopy(module)):
        assert all(torch.equal(t, own[n]) for n, t in tensors(kept).items())
        assert torch.equal(kept(x), module(x))


def test_its_own_tensors_are_back_after_an_error() -> None:
    module = Places()
    own = tensors(module)
    with pytest.raises(RuntimeError):
        call_with(module, {"shift": torch.zeros(4)}, torch.randn(2, 3))
    assert tensors(module)["shift"] is own["shift"]


def test_a_tensor_that_it_has_not_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"), holding(Places(), {"nothing": torch.zeros(3)}):
        pass
