"""Estimates of all examples, real runs of a few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.evaluation import refinement_curve
from lightning_sgdinf.query import PerClassLoss
from lightning_sgdinf.refinement import Halving, Screening, refine
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.testing.runs import EXAMPLES, NEVER_DRAWN, SmallRun, small_run
from lightning_sgdinf.truth import Counterfactuals, Truth


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.fixture(scope="module")
def runner() -> InfluenceRunner:
    return InfluenceRunner(accelerator="cpu", progress=False)


@pytest.fixture(scope="module")
def scores(small: SmallRun, runner: InfluenceRunner) -> Scores:
    return runner.run(small.model, small.train, small.validation, log=small.log)


@pytest.fixture
def truth(small: SmallRun, runner: InfluenceRunner) -> Iterator[Counterfactuals]:
    with runner.truth(small.model, small.train, small.validation, log=small.log) as opened:
        yield opened


@pytest.fixture(scope="module")
def full(small: SmallRun, runner: InfluenceRunner) -> Truth:
    return runner.counterfactuals(small.model, small.train, small.validation, log=small.log)


def spent(scores: Scores) -> dict[str, Any]:
    refined = scores.provenance["refined"]
    assert isinstance(refined, dict)
    return refined


def test_screening_measures_both_ends(scores: Scores, truth: Counterfactuals, full: Truth) -> None:
    refined = refine(scores, truth, budget=0.5, strategy=Screening())
    order = torch.argsort(scores.values[:, 0]).tolist()
    assert refined.verified is not None
    assert set(refined.verified.nonzero().flatten().tolist()) == {*order[:3], *order[-3:], NEVER_DRAWN}
    check(refined, scores, full)
    assert refined.certificate is not None
    assert "7 of 13 values were measured" in " ".join(refined.certificate.notes)
    assert 0.3 < spent(refined)["cost"] <= 0.51


@pytest.mark.parametrize("rungs", [(0.3,), (0.2, 0.6), (0.1, 0.15)])
def test_halving_measures_the_last_ones_left(
    rungs: tuple[float, ...], scores: Scores, truth: Counterfactuals, full: Truth
) -> None:
    refined = refine(scores, truth, budget=0.6, strategy=Halving(rungs=rungs, extremes=2, final=0.1))
    check(refined, scores, full, rest_stays=False)
    assert 3 <= spent(refined)["measured"] < EXAMPLES - 1
    assert spent(refined)["steps"] > (spent(refined)["measured"] - 1) * len(truth.log) * 0.6
    assert spent(refined)["cost"] <= 0.65


def check(refined: Scores, scores: Scores, full: Truth, *, rest_stays: bool = True) -> None:
    assert refined.verified is not None
    assert (refined.values - full.values)[refined.verified].abs().max() < 1e-12
    apart = (refined.values - scores.values)[~refined.verified].abs()
    assert bool((apart == 0).all()) is rest_stays
    assert refined.values[NEVER_DRAWN] == 0
    assert scores.verified is None


def test_the_whole_budget_is_the_whole_truth(scores: Scores, truth: Counterfactuals, full: Truth) -> None:
    for strategy in (Screening(), Halving()):
        refined = refine(scores, truth, budget=1.0, strategy=strategy)
        assert refined.verified is not None
        assert bool(refined.verified.all())
        assert (refined.values - full.values).abs().max() < 1e-12


def test_what_is_measured_is_not_measured_again(scores: Scores, truth: Counterfactuals) -> None:
    once = refine(scores, truth, budget=0.5, strategy=Screening())
    twice = refine(once, truth, budget=0.5, strategy=Screening())
    assert spent(twice)["cost"] < 0.2
    assert torch.equal(once.values[once.verified], twice.values[once.verified])


def test_chunks_and_a_query_of_many(small: SmallRun, full: Truth) -> None:
    tight = InfluenceRunner(accelerator="cpu", progress=False, memory_bytes=40_000)
    arguments = small.model, small.train, small.validation
    query = PerClassLoss()
    estimate = tight.run(*arguments, log=small.log, query=query)
    expected = tight.counterfactuals(*arguments, log=small.log, query=query)
    with tight.truth(*arguments, log=small.log, query=query) as truth:
        assert 1 < truth.at_once(12, truth.verify()) < 10
        refined = refine(estimate, truth, budget=0.9, strategy=Halving(extremes=3), query=1)
    assert refined.verified is not None
    assert (refined.values - expected.values)[refined.verified].abs().max() < 1e-12


def test_the_curve(scores: Scores, truth: Counterfactuals, full: Truth) -> None:
    points = refinement_curve(scores, truth, full.scores(), budgets=(0.3, 1.0), strategy=Screening(), k=3)
    assert [p.budget for p in points] == [0.3, 1.0]
    assert points[0].cost < 0.4 < points[1].cost == 1.0
    assert points[1].agreement.jaccard == 1.0
    assert points[1].agreement.kendall == pytest.approx(1.0)
    assert points[1].measured == EXAMPLES


def test_verified_survives_saving(scores: Scores, truth: Counterfactuals, tmp_path: Path) -> None:
    refined = refine(scores, truth, budget=0.3, strategy=Screening())
    refined.save(tmp_path / "scores.h5")
    again = Scores.load(tmp_path / "scores.h5")
    assert refined.verified is not None
    assert again.verified is not None
    assert torch.equal(again.verified, refined.verified)
    assert again.provenance == refined.provenance


def test_counts_cost_the_budget_and_never_grow() -> None:
    for budget in (0.1, 0.25, 0.5, 0.75, 1.0):
        for rungs in ((0.3,), (0.2, 0.4, 0.6)):
            marks = [0.0, *rungs, 1.0]
            counts = Halving(rungs=rungs)._counts(200, budget, marks)
            cost = sum(n * (b - a) for n, a, b in zip(counts, marks, marks[1:], strict=False))
            assert sorted(counts, reverse=True) == counts
            assert budget * 200 - 3 <= cost <= budget * 200 + 1e-6
            assert counts[0] <= 200


def test_questions_without_answer(scores: Scores, truth: Counterfactuals) -> None:
    for budget in (0.0, 1.5):
        with pytest.raises(ConfigurationError, match=r"share in \(0, 1\]"):
            refine(scores, truth, budget=budget)
    with pytest.raises(ConfigurationError, match="got 12 for"):
        refine(Scores(values=scores.values[:-1], queries=scores.queries), truth)
    with pytest.raises(ConfigurationError, match="open the truth with the query of the scores"):
        refine(replace(scores, queries=("another",)), truth)
    for wrong in ({"rungs": (0.5, 0.2)}, {"rungs": (1.0,)}, {"extremes": 0}, {"final": 0.0}):
        with pytest.raises(ConfigurationError, match="Halving"):
            Halving(**wrong)  # type: ignore[arg-type]
