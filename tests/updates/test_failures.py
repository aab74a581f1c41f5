"""Failures, their halves, and what blames training examples for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.baselines import TwoModels
from lightning_sgdinf.cleansing import combined
from lightning_sgdinf.curvature import ExactDiagonal
from lightning_sgdinf.errors import ConfigurationError, DivergenceError
from lightning_sgdinf.query import MeanLoss, SubsetLoss
from lightning_sgdinf.replay import ClassProbabilities
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.testing.runs import SmallNet, SmallRun, small_run
from lightning_sgdinf.updates.repair import ElasticWeights, Failures, learnt
from tests.updates.test_extrapolated import opened


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


def answers(right: list[bool]) -> ClassProbabilities:
    labels = torch.arange(len(right)) % 2
    given = torch.where(torch.tensor(right), labels, 1 - labels)
    return ClassProbabilities(torch.nn.functional.one_hot(given, 2).double().log(), labels)


def test_the_validation_set_is_halved_before_anything_is_looked_at(small: SmallRun) -> None:
    with opened(small) as run:
        failures = Failures.halves(run, seed=3)
    state = small.log.state(9)
    x, y = small.validation.dataset.tensors
    wrong = (functional_call(SmallNet(), dict(state.params), (x,)).argmax(1) != y).nonzero()[:, 0].tolist()
    assert sorted((*failures.blamed, *failures.held_out)) == wrong
    assert (len(failures.choosing), len(failures.judging)) == (5, 5)
    assert sorted((*failures.choosing, *failures.judging)) == list(range(10))
    assert set(failures.blamed) <= set(failures.choosing)
    assert set(failures.held_out) <= set(failures.judging)
    assert failures.query == SubsetLoss(failures.blamed)
    # halves do not depend on who fails
    one, other = (Failures.of(answers([j not in bad for j in range(20)]), seed=1) for bad in (range(9), range(15)))
    assert (one.choosing, one.judging) == (other.choosing, other.judging)


def test_choosing_by_what_is_left_of_failures_cannot_be_said() -> None:
    with pytest.raises(ConfigurationError, match="right by construction"):
        Failures(choosing=tuple(range(8)), judging=(8, 9), blamed=(), held_out=(8, 9))
    with pytest.raises(ConfigurationError, match=r"blamed.*\[7\]"):
        Failures(choosing=(0, 1, 2, 3), judging=(4, 5, 6, 7), blamed=(7,), held_out=())
    with pytest.raises(ConfigurationError, match="nothing"):
        Failures.of(answers([True] * 10))


def test_changes_are_counted_on_the_judging_half_alone() -> None:
    before = answers([j % 3 > 0 for j in range(20)])
    failures = Failures.of(before)
    judging, bad = list(failures.judging), list(failures.held_out)
    after = [j % 3 > 0 for j in range(20)]
    after[bad[0]] = True  # fixed
    for j in [j for j in judging if j not in bad][:2]:
        after[j] = False  # broken
    for j in failures.choosing:
        after[j] = True  # not to be counted
    changes = failures.judge(before, answers(after))
    assert (changes.failures, changes.fixed, changes.broken, changes.net) == (len(bad), 1, 2, -1)
    assert changes.net_share == -1 / len(bad)


def by_hand(small: SmallRun, failures: Failures, weights: ElasticWeights, fisher: Tensor) -> dict[str, Tensor]:
    """Descent on the failures' loss and the quadratic."""
    x, y = (t[list(failures.blamed)] for t in small.validation.dataset.tensors)
    start = {n: v.clone() for n, v in small.log.state(9).params.items()}
    stiff, place = {}, 0
    for n, v in start.items():
        stiff[n] = fisher[place : place + v.numel()].view_as(v) + weights.damping
        place += v.numel()
    net = SmallNet()

    def loss(params: dict[str, Tensor]) -> Tensor:
        own = torch.nn.functional.cross_entropy(functional_call(net, params, (x,)), y, reduction="sum") / 13
        return own + sum((stiff[n] * (params[n] - start[n]).square()).sum() for n in params) / 2

    size = weights.rate / (max(float(s.max()) for s in stiff.values()) + 1)
    params, velocity = start, {n: torch.zeros_like(v) for n, v in start.items()}
    for _ in range(weights.steps):
        slopes = grad(loss)(params)
        velocity = {n: weights.momentum * velocity[n] + slopes[n] for n in params}
        params = {n: params[n] - size * velocity[n] for n in params}
    return params


def test_the_model_that_learnt_its_failures_is_the_descent_by_hand(small: SmallRun) -> None:
    weights = ElasticWeights(damping=0.05, steps=7)
    with opened(small) as run:
        failures = Failures.halves(run)
        state = learnt(run, failures, weights)
        ranked = TwoModels(failures, weights).rank(run)
        assert torch.equal(TwoModels(weights=weights).rank(run), ranked)
        fisher = ExactDiagonal().of(run).values
        with pytest.raises(DivergenceError):
            learnt(run, failures, ElasticWeights(rate=1e200, steps=9))
    params = by_hand(small, failures, weights, fisher)
    for name, value in params.items():
        assert (state.params[name] - value).abs().max() <= 1e-12
    x, y = small.train.dataset.tensors
    losses = [
        torch.nn.functional.cross_entropy(functional_call(SmallNet(), dict(p), (x,)), y, reduction="none")
        for p in (small.log.state(9).params, params)
    ]
    assert (ranked - (losses[0] - losses[1])).abs().max() <= 1e-12
    assert ranked.abs().max() > 1e-3


def test_two_rankings_in_one() -> None:
    blame = Scores(values=torch.tensor([[-1.0], [2.0], [-3.0], [-2.0]]), queries=("loss",))
    margin = Scores(values=torch.tensor([[0.5], [-4.0], [-0.1], [0.7]]), queries=("margin",), better=("order",))
    assert combined(blame, margin).order().tolist() == [2, 0, 3, 1]
    assert combined(margin, blame).order().tolist() == [2, 1, 3, 0]
    with pytest.raises(ConfigurationError, match="4 and 1"):
        combined(blame, Scores(values=torch.zeros(1, 1), queries=("x",)))


def test_a_subset_is_the_mean_of_its_examples(small: SmallRun) -> None:
    with opened(small) as run:
        whole = BoundQuery.of(run, MeanLoss()).value(run.model)
        parts = [BoundQuery.of(run, SubsetLoss(ids)).value(run.model) for ids in (range(7), range(7, 10))]
        with pytest.raises(ConfigurationError, match="10"):
            BoundQuery.of(run, SubsetLoss([10])).value(run.model)
    assert torch.allclose((7 * parts[0] + 3 * parts[1]) / 10, whole, rtol=1e-12)
