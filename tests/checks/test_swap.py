"""The swap check: it agrees where weights are right, sees what is wrong, and says what it cannot judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.checks import SwapComparison
from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.estimators import KohLiang
from lightning_sgdinf.replay import Objective
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.scores import Scores
from tests.runner.row_situations import MaskedTokens, TwoViews
from tests.runner.situations import C, D, N, Run, Situation, labels, normal


def swap_check(scores: Scores) -> Any:
    assert scores.certificate is not None
    return next(check for check in scores.certificate.checks if check.name == "swap check")


class ClassWeights(Situation):
    """Two heads, each with class weights of its own: an exchange changes both divisors."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), labels(N), labels(N, seed=1)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, other = batch
        weights = torch.tensor([1.0, 3.0, 0.2])
        z = net(x)
        return F.cross_entropy(z, y, weight=weights) + F.cross_entropy(-z, other, weight=weights.flip(0))


class Normalised(Situation):
    def net(self) -> nn.Module:
        return nn.Sequential(nn.Linear(D, C), nn.BatchNorm1d(C))


class Dropped(Situation):
    def net(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.4), nn.Linear(D, C))


class FullBatch(Situation):
    size = N


@pytest.mark.parametrize("kind", [ClassWeights, Normalised, Dropped, FullBatch], ids=lambda kind: kind.__name__)
def test_it_agrees_to_rounding(kind: type[Situation], tmp_path: Path) -> None:
    scores = Run(kind(), tmp_path).scores()
    assert scores.certificate is not None
    assert scores.certificate.unjudged == ()
    check = swap_check(scores)
    assert check.deviation < 1e-12
    assert ("BatchNorm" in check.remark) == (kind is Normalised)
    assert "swap check" not in str(Run(kind(), tmp_path / "off").scores(certificate="off").certificate)


def test_every_kind_of_batch_is_covered(tmp_path: Path) -> None:
    class LastIsSmaller(MaskedTokens):
        size = 5

    scores = Run(LastIsSmaller(), tmp_path).scores()
    assert "steps 8, 7" in swap_check(scores).where


class Mixed(Situation):
    """Examples are mixed in training."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        return super().loss(net, (0.8 * x + 0.2 * x.flip(0) if net.training else x, y), t)


class InBatchNegatives(Situation):
    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        z = net(batch[0])
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))


@pytest.mark.parametrize(
    ("kind", "why"), [(Mixed, "in eval mode it agrees"), (InBatchNegatives, "depends on the other examples")]
)
def test_what_cannot_be_judged_is_a_warning(kind: type[Situation], why: str, tmp_path: Path) -> None:
    certificate = Run(kind(), tmp_path).scores().certificate
    assert certificate is not None
    assert any("cannot judge" in warning and why in warning for warning in certificate.warnings)


# What it sees when nothing else looks ---------------------------------------------------------------------------------


def judge(run: Run, t: int = 8, spoil: Callable[[Objective], None] = lambda objective: None, **settings: Any) -> None:
    """Swap examples of one step, past all other checks."""
    runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
    with runner.open(run.module, run.train, run.held_out, log=run.path) as opened:
        objective, step = opened.objective, opened.log.step(t)
        before, micro = opened.log.state(t), step.micro_batches[0]
        for other in (0, 3, 6):  # learns whose the rows are
            objective.load(before)
            weights = torch.ones(4, dtype=torch.float64)
            first = opened.log.step(other)
            batch = objective.batch(first, first.micro_batches[0])
            objective.prepare(first, first.micro_batches[0])
            trace = objective.owned(
                first,
                first.micro_batches[0],
                lambda owners, s=first, b=batch, w=weights: objective.forward(
                    s, s.micro_batches[0].batch_idx, b, w, owners=owners
                ),
                again=lambda: None,
            )
        spoil(objective)
        structure = PassStructure.of(trace.taps, trace.owners, trace.loss, len(micro.example_ids))
        SwapComparison(opened).see(step, before, [structure])


class HandWritten(Situation):
    """A term beside the loss function, in one step."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + 0.1 * (t == 4) * net(batch[0]).square().mean()


class CoupledGradients(Situation):
    """Examples see each other in the gradient alone, so that rows alone have the losses that they have together."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        mean = net(x).tanh().mean(0)
        return super().loss(net, (x, y), t) * 0 + F.cross_entropy(net(x) + mean - mean.detach(), y)


def twice_the_loss(module: Any, batch: Any, batch_idx: int) -> Tensor:
    x, y, _ = batch
    return 2 * F.cross_entropy(module.net(x), y, reduction="none")


def strided_for_blocks(objective: Objective) -> None:
    objective.orders.orders[0, "cross_entropy"] = (2, "blocks")


def test_it_sees_a_term_without_weights_where_it_is(tmp_path: Path) -> None:
    run = Run(HandWritten(), tmp_path)
    judge(run, 3)
    with pytest.raises(UntappedLossError, match=r"step 4: when examples \[\d+\] .* exchanged for \[\d+\]"):
        judge(run, 4)


def test_it_sees_examples_that_see_each_other(tmp_path: Path) -> None:
    with pytest.raises(UntappedLossError, match="examples of a batch see each other"):
        judge(Run(CoupledGradients(), tmp_path))


def test_it_sees_rows_of_the_wrong_owner(tmp_path: Path) -> None:
    run = Run(TwoViews(), tmp_path)
    judge(run)
    with pytest.raises(UntappedLossError, match=r"cross_entropy \(2 rows per example\)"):
        judge(run, spoil=strided_for_blocks)


def test_it_sees_losses_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(UntappedLossError, match="per_example_loss"):
        judge(Run(Situation(), tmp_path), per_example_loss=twice_the_loss)


def test_counterfactual_runs_are_judged_at_the_final_model(tmp_path: Path) -> None:
    run = Run(CoupledGradients(), tmp_path)
    with pytest.raises(UntappedLossError, match="examples of a batch see each other"):
        run.counterfactuals()


def test_a_direct_estimate_says_what_was_compared(tmp_path: Path) -> None:
    run = Run(TwoViews(), tmp_path)
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    scores = runner.run(run.module, run.train, run.held_out, log=run.path, estimator=KohLiang())
    assert scores.certificate is not None
    (check,) = [c for c in scores.certificate.further if c.name == "swap check"]
    assert check.outcome in ("equal", "rounding")
