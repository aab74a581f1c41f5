from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import ExampleLoss, Margin, MeanLoss, ValidationData
from lightning_sgdinf.studies.pipeline.explanations import JoinedQuery, explained_query, wrongly_classified


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def data() -> ValidationData:
    x = torch.tensor([[3.0, 0, 0], [0, 2.0, 0], [0, 0, 9.0], [0, 1.0, 0]])
    return ValidationData(
        loader=DataLoader(TensorDataset(x, torch.tensor([0, 0, 1, 1])), batch_size=3), transfer=lambda b: b
    )


def test_wrong_predictions_the_worst_first() -> None:
    model = Linear().train()
    assert wrongly_classified(model, data().loader, 5) == (2, 1)
    assert wrongly_classified(model, data().loader, 1) == (2,)
    assert wrongly_classified(model, data().loader, 0) == ()
    assert model.training


def test_a_frozen_batch_norm_stays_frozen() -> None:
    """In an evaluating part of a training model, as fine-tuning has it."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[0].eval()
    before = model[0].state_dict()["running_mean"].clone()
    wrongly_classified(model, data().loader, 5)
    assert [module.training for module in model.modules()] == [True, False, True]
    model(torch.full((4, 3), 9.0))
    assert torch.equal(model[0].running_mean, before)


def test_joined_queries_keep_their_values() -> None:
    query = JoinedQuery(MeanLoss(), ExampleLoss([2, 1]))
    means, weights = torch.zeros(3), torch.zeros(3)
    for number, weight, term in query.terms(Linear(), data()):
        means[number] += weight * term.detach()
        weights[number] += weight
    logits, labels = data().loader.dataset.tensors  # type: ignore[attr-defined]
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(means / weights, torch.stack([losses.mean(), losses[2], losses[1]]))
    assert query.names(data())[1:] == ("loss of validation example 2", "loss of validation example 1")


def test_directions_must_agree() -> None:
    with pytest.raises(ConfigurationError, match="'lower' and 'higher'"):
        JoinedQuery(MeanLoss(), Margin([0]))
    for query in (MeanLoss(), Margin()):
        assert JoinedQuery(query, explained_query(query.better, (0,))).better == query.better
