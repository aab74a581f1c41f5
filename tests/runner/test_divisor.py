"""Losses that divide by what is left of a batch: against training without the example, written as the user wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import UnsupportedRunError, UntappedLossError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.replay import CounterfactualRun, example_weights
from lightning_sgdinf.testing import relative_error
from tests.runner.row_situations import IgnoredTokens, MaskedTokens, TwoViews
from tests.runner.situations import C, N, Run, Situation, Truth

CLASS_WEIGHTS = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)


class ClassWeights(Situation):
    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], t: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(x), y, weight=CLASS_WEIGHTS, label_smoothing=0.1)


class Ignored(Situation):
    def columns(self) -> tuple[Tensor, ...]:
        x, y = super().columns()
        y[[2, 5]] = -100
        return x, y


class TwoTerms(Situation):
    """Two means over different rows, and a penalty."""

    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], t: int) -> Tensor:
        x, y = batch
        z = net(x)
        few = x[:, 0] > -0.5
        return (
            F.cross_entropy(z, y, weight=CLASS_WEIGHTS)
            + F.mse_loss(z[few], x[few, :C])
            + 0.1
            * z.new_ones(())
            * (
                net.weight.square().sum()  # type: ignore[union-attr,operator]
            )
        )


def without(run: Run, example: int) -> Tensor:
    """Train as a plain loop, on batches that the example is not in; return the query."""
    net = run.situation.net().double()
    net.load_state_dict({n.removeprefix("net."): v for n, v in run.before.items()})
    optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.6)
    columns = run.situation.columns()
    for t, (ids, _) in enumerate(run.journal):
        left = ids[ids != example]
        optimizer.zero_grad()
        run.situation.loss(net, [c[left] for c in columns], t).backward()
        optimizer.step()
    return run.situation.query({f"net.{n}": p.detach() for n, p in net.named_parameters()})


def measured(run: Run) -> Truth:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    return runner.counterfactuals(run.module, run.train, run.held_out, log=run.path, divisor="reduced")


@pytest.mark.parametrize("kind", [ClassWeights, Ignored, IgnoredTokens, MaskedTokens, TwoViews, TwoTerms])
def test_without_an_example_losses_divide_by_what_is_left(kind: type[Situation], tmp_path: Path) -> None:
    run = Run(kind(), tmp_path)
    base = without(run, -1)
    expected = torch.stack([without(run, j) - base for j in range(N)])[:, None]
    assert relative_error(measured(run).values, expected) < 1e-9


@pytest.mark.parametrize("kind", [ClassWeights, Ignored, MaskedTokens, TwoTerms])
def test_scores_are_the_derivative(kind: type[Situation], tmp_path: Path) -> None:
    run = Run(kind(), tmp_path)
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    arguments = {"log": run.path, "estimator": SgdInfluence(divisor="reduced")}
    scores = runner.run(run.module, run.train, run.held_out, **arguments)
    eps = 1e-5
    with runner.open(run.module, run.train, run.held_out, log=run.path) as opened:
        opened.audit()
        counterfactual = CounterfactualRun(opened, divisor="reduced")

        def query(example: int, weight: float) -> Tensor:
            weights = torch.ones(N, dtype=torch.float64)
            weights[example] = weight
            return run.situation.query(counterfactual.run(weights=weights).params)

        slopes = [(query(j, 1 - eps) - query(j, 1 + eps)) / (2 * eps) for j in range(N)]
    assert relative_error(scores.values, torch.stack(slopes)[:, None]) < 1e-7


def test_slopes_of_losses_that_divide_by_what_is_left_add_up_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One factor for all weights changes no such loss; a wrong share of an example would."""
    run = Run(ClassWeights(), tmp_path)
    scaled = example_weights._dividing_by_what_is_left
    monkeypatch.setattr(example_weights, "_dividing_by_what_is_left", lambda *call: scaled(*call) * call[3])
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    with pytest.raises(UntappedLossError, match=r"step \d+: the slopes of its"):
        runner.run(run.module, run.train, run.held_out, log=run.path, estimator=SgdInfluence(divisor="reduced"))


class Summed(Situation):
    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], t: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(x), y, reduction="sum") / 4


class MeanByHand(Situation):
    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], t: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(x), y, reduction="none").mean()


@pytest.mark.parametrize("kind", [Summed, MeanByHand])
def test_a_divisor_that_is_not_known_is_refused(kind: type[Situation], tmp_path: Path) -> None:
    run = Run(kind(), tmp_path)
    with pytest.raises(UnsupportedRunError, match=r"step \d: divisor='reduced' .* cross_entropy .*per_example_loss="):
        measured(run)
    runner = InfluenceRunner(
        accelerator="cpu",
        progress=False,
        per_example_loss=lambda module, batch, i: F.cross_entropy(module.net(batch[0]), batch[1], reduction="none"),
    )
    truth = runner.counterfactuals(run.module, run.train, run.held_out, log=run.path, divisor="reduced")
    if kind is MeanByHand:
        base = without(run, -1)
        expected = torch.stack([without(run, j) - base for j in range(N)])[:, None]
        assert relative_error(truth.values, expected) < 1e-9
