"""Scores of an ensemble against autograd through the unrolled training of its members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.ensembles import Sisa
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import MeanLoss
from tests.ensembles.runs import Plain, Points, sisa

VALIDATION = Points(10)
RUNNER = InfluenceRunner(accelerator="cpu", precision="64-true", certificate="off", progress=False)


def unrolled(ensemble: Sisa, dataset: Points, weights: Tensor) -> Tensor:
    """Train every member with example weights; return the validation logits ``[S, n, C]`` with a graph."""
    plan, logits = ensemble.plan, []
    for shard in range(plan.shards):
        start = ensemble._fitted.new_model(shard).state_dict()
        params = [start[f"net.{name}"].clone().requires_grad_() for name in ("weight", "bias")]
        velocity = [torch.zeros_like(p) for p in params]
        for stage in range(plan.slices):
            for epoch in range(plan.stage_epochs(stage)):
                for batch in plan.batches(shard, stage, epoch, frozenset()):
                    rows = -(dataset.x[batch] @ params[0].T + params[1]).log_softmax(1)
                    loss = (rows[torch.arange(len(batch)), dataset.y[batch]] * weights[batch]).sum() / len(batch)
                    gradients = torch.autograd.grad(loss, params, create_graph=True)
                    velocity = [0.8 * v + g for v, g in zip(velocity, gradients, strict=True)]
                    params = [p - 0.2 * v for p, v in zip(params, velocity, strict=True)]
        logits.append(VALIDATION.x @ params[0].T + params[1])
    return torch.stack(logits)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Sisa:
    return sisa(tmp_path_factory.mktemp("influence"), shards=2, keep="every_step").fit(Plain, Points(17))


@pytest.mark.parametrize("aggregation", ["mean_softmax", "mean_logits"])
def test_the_loss_of_the_ensemble(ensemble: Sisa, aggregation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "aggregation", aggregation)
    weights = torch.ones(17, dtype=torch.float64, requires_grad=True)
    logits = unrolled(ensemble, Points(17), weights)
    answer = logits.softmax(2).mean(0) if aggregation == "mean_softmax" else logits.mean(0).softmax(1)
    loss = functional.nll_loss(answer.log(), VALIDATION.y)
    (gradient,) = torch.autograd.grad(loss, weights)
    scores = ensemble.influence(RUNNER, DataLoader(VALIDATION, batch_size=4))
    torch.testing.assert_close(scores.values[:, 0], -gradient, rtol=1e-9, atol=1e-11)
    assert scores.queries == ("validation loss of the ensemble",)


def test_a_query_of_the_members(ensemble: Sisa) -> None:
    weights = torch.ones(17, dtype=torch.float64, requires_grad=True)
    logits = unrolled(ensemble, Points(17), weights)
    loss = torch.stack([functional.cross_entropy(row, VALIDATION.y) for row in logits]).mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    scores = ensemble.influence(RUNNER, DataLoader(VALIDATION, batch_size=4), query=MeanLoss())
    torch.testing.assert_close(scores.values[:, 0], -gradient, rtol=1e-9, atol=1e-11)


def test_the_certificate_says_whose_it_is(ensemble: Sisa) -> None:
    runner = InfluenceRunner(accelerator="cpu", precision="64-true", progress=False)
    certificate = ensemble.influence(runner, DataLoader(VALIDATION, batch_size=4)).certificate
    assert certificate is not None
    assert any("of 2 whose removals are predicted worst" in note for note in certificate.notes)
    assert certificate.reach()[0].startswith("Of shard ")
    assert ", the worst predicted of 2: Trust" in certificate.reach()[0]


def test_warnings_of_other_members_are_kept(ensemble: Sisa, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [Certificate(level="fast", unjudged=(f"member {s}",)) for s in range(2)]

    class Runner:
        def run(self, *_: Any, **__: Any) -> Scores:
            return Scores(values=torch.zeros(17, 1), queries=("loss",), certificate=own.pop(0))

    certificate = ensemble.influence(Runner(), None).certificate  # type: ignore[arg-type]
    assert certificate is not None
    assert certificate.warnings == ("member 0", "Shard 1: member 1")


def test_refusals(ensemble: Sisa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = sisa(tmp_path).fit(Plain, Points())
    with pytest.raises(ConfigurationError, match="without records; take keep="):
        without.influence(RUNNER, DataLoader(VALIDATION))
    monkeypatch.setattr(ensemble, "aggregation", "majority")
    with pytest.raises(ConfigurationError, match="give query="):
        ensemble.influence(RUNNER, DataLoader(VALIDATION))
