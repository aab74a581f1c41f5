"""Values of a recorded run's examples: utilities against training by hand, and what the runner makes of them."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.cleansing import CleansingContext, Negative
from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.query import Accuracy, ExampleLoss, MeanLoss, Query
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.testing import EstimatorSuite, SmallRun, small_run
from lightning_sgdinf.testing.runs import EXAMPLES, NEVER_DRAWN, SmallNet
from lightning_sgdinf.valuation import (
    Banzhaf,
    FreshTrainings,
    Gains,
    GradientShapley,
    KnnShapley,
    LeaveOneOut,
    Shapley,
    Utility,
    knn_shapley,
)
from lightning_sgdinf.valuation.recorded import RecordedUtility
from lightning_sgdinf.valuation.sampling import draw_order
from tests.adjoint.cases import thinned
from tests.valuation.games import by_all_orders


class TestShapley(EstimatorSuite):
    estimator = Shapley(permutations=1)


class TestBanzhaf(EstimatorSuite):
    estimator = Banzhaf(coalitions=20, control=Gains())


def scored(run: SmallRun, estimator: Any, query: Query | None = None, **more: Any) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", progress=False, **{"certificate": "off", **more})
    return runner.run(run.model, run.train, run.validation, log=run.log, query=query, estimator=estimator)


def by_hand(run: SmallRun, members: set[int]) -> SmallNet:
    """The recorded run with the losses of some examples only, their mean in each batch."""
    model = SmallNet()
    model.load_state_dict(run.log.state(0).params)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    x, y = run.train.dataset.tensors  # type: ignore[attr-defined]
    for step in run.log.steps(0, len(run.log)):
        ids = [int(i) for i in step.example_ids if int(i) in members]
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(x[ids]), y[ids]) if ids else 0 * sum(p.sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
    return model


def validation(run: SmallRun) -> tuple[Tensor, Tensor]:
    return run.validation.dataset.tensors  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run(learnable=True)


def test_a_coalition_is_worth_the_query_after_training_on_it_alone(small: SmallRun) -> None:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    x, y = validation(small)
    with runner.open(small.model, small.train, small.validation, log=small.log) as run:
        utility = RecordedUtility(run, runner.bind(run, ExampleLoss([0, 4])))
        assert utility.players == EXAMPLES - 1  # one was never drawn
        coalitions = torch.rand(12, utility.players, generator=torch.Generator().manual_seed(0)) < 0.4
        coalitions[0], coalitions[1] = False, True
        values = utility.values(coalitions)
        for row, coalition in enumerate(coalitions):
            model = by_hand(small, set(coalition.nonzero()[:, 0].tolist()))
            expected = F.cross_entropy(model(x), y, reduction="none")[[0, 4]]
            assert (values[row] - expected).abs().max() < 1e-10, coalition
        accuracy = RecordedUtility(run, runner.bind(run, Accuracy())).values(coalitions)
        for row, coalition in enumerate(coalitions):
            model = by_hand(small, set(coalition.nonzero()[:, 0].tolist()))
            assert accuracy[row, 0] == (model(x).argmax(1) == y).double().mean()
    assert len(set(accuracy.flatten().tolist())) > 3, "the test is degenerate"


def test_groups_are_valued_exactly_and_shared_out(small: SmallRun) -> None:
    groups = ((0, 1, 2), (3, 4), (6, 8, 9), (12,))
    scores = scored(small, Shapley(groups=groups))

    class Game:
        players, names = 4, ("loss",)

        def values(self, coalitions: Tensor) -> Tensor:
            x, y = validation(small)
            rest = {5, 7, 10, 11}
            members = [rest.union(*(groups[p] for p in row.nonzero()[:, 0].tolist())) for row in coalitions]
            return torch.stack([F.cross_entropy(by_hand(small, m)(x), y).detach() for m in members])[:, None]

    expected = by_all_orders(Game())  # type: ignore[arg-type]
    for number, members in enumerate(groups):
        assert (scores.values[list(members), 0] + expected[number, 0] / len(members)).abs().max() < 1e-10
    assert not scores.values[[5, 7, 10, 11]].any()
    assert scores.certificate is not None
    assert "Exact: 16 coalitions" in " ".join(scores.certificate.notes)
    assert "1 (2 examples)" in " ".join(scores.certificate.notes)


def test_scores_have_the_sign_of_the_product(small: SmallRun) -> None:
    left_out = scored(small, LeaveOneOut(), certificate="full")
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    truth = runner.counterfactuals(small.model, small.train, small.validation, log=small.log, divisor="reduced")
    assert (left_out.values - truth.values).abs().max() < 1e-12
    assert "every example was really left out" in left_out.most_harmful(1).reach[0]
    by_accuracy = scored(small, Shapley(permutations=30, seed=2), Accuracy())
    assert by_accuracy.better == ("higher",)
    ends = [
        (by_hand(small, m)(validation(small)[0]).argmax(1) == validation(small)[1]).double().mean()
        for m in (set(range(12)), set())
    ]
    assert -by_accuracy.values.sum().item() == pytest.approx(float(ends[0] - ends[1]), abs=1e-6)
    assert by_accuracy.harm().sum() < 0, "examples that teach the classes are no harm on the whole"
    harmful = (by_accuracy.harm() > 0).nonzero()[:, 0].tolist()
    chosen = Negative().select(by_accuracy, CleansingContext())
    assert sorted(chosen.drop) == harmful


def test_scores_say_their_error_and_that_they_predict_no_removal(small: SmallRun, tmp_path: Any) -> None:
    scores = scored(small, Shapley(permutations=20), certificate="full")
    assert scores.standard_error is not None
    assert scores.standard_error.shape == scores.values.shape
    assert scores.standard_error[NEVER_DRAWN] == 0
    assert scores.certificate is not None
    assert scores.certificate.trust is None
    said = scores.certificate.meaning
    assert "not the change of this run without it" in said
    assert scores.certificate.summary()[0] == said == scores.most_harmful(3).reach[0]
    scores.save(tmp_path / "scores.h5")
    loaded = Scores.load(tmp_path / "scores.h5")
    assert torch.equal(loaded.standard_error, scores.standard_error)  # type: ignore[arg-type]
    assert loaded.certificate == scores.certificate
    assert "standard_error_of_mean validation loss" in scores.to_frame().columns
    with pytest.raises(ConfigurationError, match="standard_error"):
        Scores(values=scores.values, queries=("loss",), standard_error=scores.standard_error[:3])


def test_influence_as_a_control_variate(small: SmallRun) -> None:
    exact = scored(small, Banzhaf(coalitions=4096)).values
    control = Gains(query=MeanLoss())
    for estimator in (Banzhaf(coalitions=400, control=control), Banzhaf(coalitions=400)):
        sampled = scored(small, estimator)
        assert sampled.standard_error is not None
        deviation = (sampled.values - exact)[:12] / sampled.standard_error[:12]
        assert 0.1 < deviation.square().mean() < 2.5
    with pytest.raises(ConfigurationError, match=r"Gains\(query\)"):
        scored(small, Banzhaf(control=Gains(query=ExampleLoss([0, 1]))))
    with pytest.raises(ConfigurationError, match="its gradient is zero"):
        scored(small, Shapley(sampling="every_size", control=Gains()), Accuracy())


def test_fresh_trainings(small: SmallRun) -> None:
    def fit(dataset: Any) -> nn.Module:
        model = SmallNet()
        model.load_state_dict(small.log.state(0).params)
        for i in range(len(dataset)):
            x, y = dataset[i]
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        return model

    groups = (tuple(range(6)), tuple(range(6, 13)))
    scores = scored(small, Shapley(groups=groups, trainings=FreshTrainings(fit)))
    x, y = validation(small)
    data = small.train.dataset

    def loss(ids: tuple[int, ...]) -> float:
        return F.cross_entropy(fit([data[i] for i in ids])(x), y).item()

    nobody, first, second, both = loss(()), loss(groups[0]), loss(groups[1]), loss((*groups[0], *groups[1]))
    expected = ((first - nobody) + (both - second)) / 2
    assert scores.values[0, 0].item() == pytest.approx(-expected / 6, abs=1e-12)
    known = scored(small, Shapley(groups=groups, trainings=FreshTrainings(fit, empty=[3.0])))
    assert known.values.sum().item() == pytest.approx(3.0 - both, abs=1e-12)
    with pytest.raises(ConfigurationError, match="one value per query"):
        scored(small, Shapley(groups=groups, trainings=FreshTrainings(fit, empty=[3.0, 1.0])))


def test_gradient_shapley_by_hand(small: SmallRun) -> None:
    x, y = small.train.dataset.tensors  # type: ignore[attr-defined]
    vx, vy = validation(small)
    expected = torch.zeros(EXAMPLES, dtype=torch.float64)
    for round_ in range(4):
        model = SmallNet()
        model.load_state_dict(small.log.state(0).params)
        last = F.cross_entropy(model(vx), vy).item()
        for i in draw_order("uniform", 3, round_, EXAMPLES).tolist():
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            with torch.no_grad():
                for parameter, gradient in zip(
                    model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
                ):
                    parameter -= 0.3 * gradient
                now = F.cross_entropy(model(vx), vy).item()
            expected[i] += (now - last) / 4
            last = now
    scores = scored(small, GradientShapley(permutations=4, learning_rate=0.3, seed=3))
    assert (scores.values[:, 0] + expected).abs().max() < 1e-12
    chosen = scored(small, GradientShapley(permutations=4, seed=3))
    assert chosen.certificate is not None
    assert "learning rate 0.1, for" in " ".join(chosen.certificate.notes)
    late = SmallRun(small.model, small.train, small.validation, thinned(small.log, [3, 9]))
    with pytest.raises(StateNotStoredError, match="every_step"):
        scored(late, GradientShapley())


@pytest.mark.parametrize("neighbours", [1, 2, 5, 9])
def test_knn_shapley_is_the_mean_of_all_orders(neighbours: int) -> None:
    draw = torch.Generator().manual_seed(neighbours)
    train, rows = torch.randn(6, 3, generator=draw).double(), torch.randn(7, 3, generator=draw).double()
    labels, answers = torch.randint(0, 2, (6,), generator=draw), torch.randint(0, 2, (7,), generator=draw)

    class Vote:
        players, names = 6, ("vote",)

        def values(self, coalitions: Tensor) -> Tensor:
            def vote(row: Tensor) -> float:
                members = row.nonzero()[:, 0]
                total = 0.0
                for point, answer in zip(rows, answers, strict=True):
                    nearest = members[(train[members] - point).norm(dim=1).argsort()][:neighbours]
                    total += float((labels[nearest] == answer).sum()) / neighbours
                return total / len(rows)

            return torch.tensor([[vote(row)] for row in coalitions], dtype=torch.float64)

    expected = by_all_orders(Vote())[:, 0]  # type: ignore[arg-type]
    values = knn_shapley(train, labels, rows, answers, neighbours)
    assert (values - expected).abs().max() < 1e-12
    assert values.abs().max() > 0.01, "the test is degenerate"


def test_knn_shapley_ranks_like_a_baseline(small: SmallRun) -> None:
    scores = scored(small, KnnShapley(neighbours=2, features="inputs"))
    x, y = small.train.dataset.tensors  # type: ignore[attr-defined]
    vx, vy = validation(small)
    assert torch.allclose(scores.values[:, 0], knn_shapley(x, y, vx, vy, 2), atol=1e-12)
    assert scores.better == ("order",)
    assert scores.order()[0] == scores.values[:, 0].argmin()
    assert torch.isfinite(scored(small, KnnShapley()).values).all()
    with pytest.raises(ConfigurationError, match="neighbours"):
        KnnShapley(neighbours=0)


def test_other_processes_open_the_run_for_themselves(small: SmallRun) -> None:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.open(small.model, small.train, small.validation, log=small.log) as run:
        utility = RecordedUtility(run, runner.bind(run, MeanLoss()), groups=[[0, 1], [2, 3]])
        coalitions = torch.tensor([[True, False], [False, False], [True, True]])
        values = utility.values(coalitions)
        sent = pickle.dumps(utility.reopen())  # as a process is sent it, while the model is borrowed
    key, opening = pickle.loads(sent)
    with ExitStack() as stack:
        there = opening(stack)
        assert isinstance(there, Utility)
        assert (there.values(coalitions) - values).abs().max() < 1e-12
    assert key == utility.key
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_config(backend="threading"):  # which share the model, so that one of them does the work
        several = scored(small, Shapley(permutations=3, jobs=2))
    assert torch.equal(several.values, scored(small, Shapley(permutations=3)).values)


def test_what_cannot_be_sent_is_said(small: SmallRun) -> None:
    class Unsendable:
        players, names = 6, ("value",)

        def __reduce__(self) -> Any:
            raise TypeError("cannot pickle 'socket' object")

        def values(self, coalitions: Tensor) -> Tensor:
            return coalitions.sum(1, keepdim=True).double()

    pytest.importorskip("joblib")
    with pytest.raises(ConfigurationError, match="top level of a module"):
        Shapley(permutations=2, jobs=2).value(Unsendable())


def test_an_accuracy_has_no_influence(small: SmallRun) -> None:
    with pytest.raises(ConfigurationError, match="its gradient is zero"):
        scored(small, SgdInfluence(), Accuracy())
