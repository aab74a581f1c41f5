from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_sgdinf.errors import ModelMismatchError
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import load_state, state_of, with_state


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    model[2].bias.requires_grad_(False)
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v.detach().clone() for n, v in (*model.named_parameters(), *model.named_buffers())}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_state_travels_from_one_model_to_another() -> None:
    one, other = net(), net()
    one(torch.randn(5, 2, dtype=torch.float64))
    assert not same(tensors(one), tensors(other)), "the test is degenerate"
    load_state(other, state_of(one))
    assert same(tensors(one), tensors(other))


def test_a_state_is_a_copy() -> None:
    model = net()
    state = state_of(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert not torch.equal(state.params["0.weight"], model[0].weight)


def test_parameters_are_written_in_place() -> None:
    model = net()
    optimizer_sees = model[0].weight
    load_state(model, state_of(net()))
    assert model[0].weight is optimizer_sees
    assert model[0].weight.requires_grad
    assert not model[2].bias.requires_grad


def test_untrained_parameters_may_be_missing() -> None:
    model, state = net(), state_of(net())
    kept = model[2].bias.clone()
    params = {n: v for n, v in state.params.items() if n != "2.bias"}
    load_state(model, ModelState(params=params, buffers=state.buffers))
    assert torch.equal(model[2].bias, kept)
    assert torch.equal(model[2].weight, state.params["2.weight"])


def test_inside_and_after_the_with_block() -> None:
    model, state = net(), state_of(net())
    before = tensors(model)

    def fails_inside() -> None:
        with with_state(model, state) as same_model:
            assert same_model is model
            assert torch.equal(model[0].weight, state.params["0.weight"])
            model(torch.randn(5, 2, dtype=torch.float64))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails_inside()
    assert same(tensors(model), before)


@pytest.mark.parametrize(
    ("params", "buffers", "named"),
    [
        ({"9.weight": torch.zeros(1)}, {}, "parameter 9.weight is not in the model"),
        ({"0.weight": None}, {}, "parameter 0.weight is not in the state"),
        ({"0.weight": torch.zeros(3, 2)}, {}, r"0.weight is float64 \[3, 2\] in the model and float32 \[3, 2\] in the"),
        (
            {"0.bias": torch.zeros(4, dtype=torch.float64)},
            {},
            r"0.bias is float64 \[3\] in the model and float64 \[4\]",
        ),
        ({}, {"1.running_mean": None}, "buffer 1.running_mean is not in the state"),
        ({}, {"count": torch.zeros(1)}, "buffer count is not in the model"),
    ],
)
def test_names_what_does_not_fit_and_writes_nothing(params: dict, buffers: dict, named: str) -> None:
    model, state = net(), state_of(net())
    before = tensors(model)
    wrong = ModelState(
        params={n: v for n, v in {**state.params, **params}.items() if v is not None},
        buffers={n: v for n, v in {**state.buffers, **buffers}.items() if v is not None},
    )
    with pytest.raises(ModelMismatchError, match=named):
        load_state(model, wrong)
    assert same(tensors(model), before)
