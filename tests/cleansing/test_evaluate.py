from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sgdinf.cleansing import ModelPredictions, Selection, StateEvaluation, evaluate_classifier, held_out_value
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.updates import Updated, state_of


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.randn(11, 4, dtype=torch.float64), torch.randint(0, 3, (11,)))


def net(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, outputs)).double()


def by_hand(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Loss and error one example at a time, in plain Python, from the layers' formulas in eval mode."""
    first, norm, _, last = model
    losses, wrong = [], 0
    for x, y in data:
        hidden = x @ first.weight.T + first.bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        logits = (hidden @ last.weight.T + last.bias).tolist()
        losses.append(math.log(sum(math.exp(v) for v in logits)) - logits[int(y)])
        wrong += logits.index(max(logits)) != int(y)
    return sum(losses) / len(losses), wrong / len(losses)


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_means_over_examples_in_eval_mode(data: TensorDataset, batch_size: int) -> None:
    model = net()
    model(torch.randn(9, 4, dtype=torch.float64))
    evaluation = evaluate_classifier(model, DataLoader(data, batch_size=batch_size))
    loss, error = by_hand(model, data)
    assert evaluation.loss == pytest.approx(loss, rel=1e-12)
    assert evaluation.error == pytest.approx(error, abs=1e-15)
    assert evaluation.count == 11


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_means_two_classes(shape: tuple[int, ...]) -> None:
    x = torch.tensor([[2.0], [-1.0], [-0.5], [-3.0]], dtype=torch.float64)
    y = torch.tensor([1, 1, 0, 0])  # only the second is wrong

    class Identity(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(shape)

    evaluation = evaluate_classifier(Identity(), DataLoader(TensorDataset(x, y), batch_size=3))
    expected = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log1p(math.exp(-0.5)), math.log1p(math.exp(-3))]
    assert evaluation.loss == pytest.approx(sum(expected) / 4, rel=1e-12)
    assert evaluation.error == 0.25


class Noisy(Dataset):
    """Draws from every generator."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(4, dtype=torch.float64) + random.random() + np.random.rand(), index % 3


def test_leaves_modes_gradients_buffers_and_generators_as_found() -> None:
    model = net()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    modes = [m.training for m in model.modules()]
    before, tensors = (
        (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
        state_of(model),
    )
    evaluate_classifier(model, DataLoader(Noisy(), batch_size=3, shuffle=True))
    ModelPredictions(model, Noisy())([0, 1, 2])
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert all(torch.equal(a[3], b[3]) for a, b in zip(state_of(model).items(), tensors.items(), strict=True))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_stops_at_the_batch_with_a_loss_that_is_not_finite(data: TensorDataset) -> None:
    data.tensors[0][6, 0] = math.nan
    model = net()
    with pytest.raises(NonFiniteError, match="batch 2"):
        evaluate_classifier(model, DataLoader(data, batch_size=3))
    assert all(m.training for m in model.modules())


def test_refuses_an_empty_loader_and_other_forms(data: TensorDataset) -> None:
    model = net()
    with pytest.raises(ConfigurationError, match="one example or more"):
        evaluate_classifier(model, [])
    with pytest.raises(ConfigurationError, match=r"give `forward=`"):
        evaluate_classifier(model, [{"x": data.tensors[0], "y": data.tensors[1]}])
    with pytest.raises(ConfigurationError, match=r"got \(11, 3\) and torch.float32 of shape \(11, 2\)"):
        evaluate_classifier(model, [(data.tensors[0], torch.zeros(11, 2))])


def test_batches_of_another_form_go_through_a_function(data: TensorDataset) -> None:
    x, y = data.tensors
    evaluation = evaluate_classifier(net := _plain(), [{"x": x, "y": y}], forward=lambda m, b: (m(b["x"]), b["y"]))
    assert evaluation == evaluate_classifier(net, [(x, y)])


def _plain() -> nn.Module:
    return nn.Linear(4, 3).double()


def test_states_are_evaluated_and_the_model_put_back(data: TensorDataset) -> None:
    model, other = _plain(), _plain()
    before = state_of(model)
    loader = DataLoader(data, batch_size=4)
    evaluation = StateEvaluation(model, loader)
    assert evaluation(state_of(other)) == evaluate_classifier(other, loader)
    assert evaluation(state_of(other)) != evaluate_classifier(model, loader), "the test is degenerate"
    assert torch.equal(model.weight, before.params["weight"])

    asked: list[Selection] = []

    def retrain(selection: Selection) -> Updated:
        asked.append(selection)
        return Updated(state=state_of(other), seconds=0.0)

    selection = Selection(drop=(1,))
    expected = evaluate_classifier(other, loader)
    assert held_out_value(retrain, evaluation)(selection) == expected.loss
    assert held_out_value(retrain, evaluation, metric="error")(selection) == expected.error
    assert asked == [selection, selection]
    with pytest.raises(ConfigurationError, match="'loss' or 'error', got 'f1'"):
        held_out_value(retrain, evaluation, metric="f1")


def test_predictions_are_the_models_classes(data: TensorDataset) -> None:
    model = _plain()
    ids = [7, 0, 10, 3]
    classes = ModelPredictions(model, data, batch_size=3)(ids)
    rows = [(data.tensors[0][j] @ model.weight.T + model.bias).tolist() for j in ids]
    assert classes.tolist() == [row.index(max(row)) for row in rows]
    assert classes.dtype == torch.int64
    assert ModelPredictions(model, data)([]).shape == (0,)


def test_no_number_for_what_is_no_class(data: TensorDataset) -> None:
    """Outputs and labels of one shape look like two classes, and are one-hot labels, soft ones or a regression."""
    x, y = data.tensors
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    with pytest.raises(ConfigurationError, match=r"whole labels \[B\], got \(11, 3\) and torch.float64"):
        evaluate_classifier(_plain(), [(x, one_hot)])
    single = nn.Linear(4, 1).double()
    for labels in (torch.linspace(-1, 1, 11).double(), torch.linspace(-1, 1, 11).double()[:, None]):
        with pytest.raises(ConfigurationError, match=r"expected labels 0 or 1 .* got -1.0; if this is no classifier"):
            evaluate_classifier(single, [(x, labels)])
    halves = torch.arange(11) % 2
    for labels in (halves, halves.double(), halves[:, None], halves.double()[:, None]):
        evaluation = evaluate_classifier(single, [(x, labels)])
        assert evaluation.count == 11
        logits = single(x)[:, 0]
        expected = torch.nn.functional.softplus(torch.where(halves == 1, -logits, logits)).mean()
        assert evaluation.loss == pytest.approx(expected.item())
