from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.evaluation import datamodelling_score, random_subsets
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.truth import Truth

N, M, Q = 12, 30, 3


def truth_of(values: torch.Tensor, sets: tuple[tuple[int, ...], ...]) -> Truth:
    return Truth(
        values=values,
        leave_out=sets,
        examples=N,
        queries=tuple(f"q{i}" for i in range(values.shape[1])),
        better=("lower",) * values.shape[1],
        base=torch.zeros(values.shape[1], dtype=torch.float64),
        last_step=5,
        steps_taken=1,
        at_once=1,
        seconds=0.0,
        verified=None,
        drift=torch.zeros(values.shape[1], dtype=torch.float64),
    )


@pytest.fixture
def scores() -> Scores:
    values = torch.randn(N, Q, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Scores(values=values, queries=("q0", "q1", "q2"))


def sums(scores: Scores, sets: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    return torch.stack([sum(scores.values[j] for j in one) for one in sets])  # type: ignore[arg-type]


def test_an_additive_truth_is_predicted_fully(scores: Scores) -> None:
    sets = random_subsets(N, M)
    score = datamodelling_score(scores, truth_of(sums(scores, sets) ** 3, sets), resamples=50)
    assert (score.mean, score.low, score.high) == pytest.approx((1.0, 1.0, 1.0))
    assert score.per_query == pytest.approx((1.0,) * Q)
    assert score.sets == M


def test_it_is_the_mean_rank_correlation_with_its_bootstrap_interval(scores: Scores) -> None:
    sets = random_subsets(N, M, seed=1)
    noise = torch.randn(M, Q, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    measured = sums(scores, sets) + 2 * noise
    score = datamodelling_score(scores, truth_of(measured, sets), resamples=400, seed=3)
    predicted = sums(scores, sets)
    expected = [spearmanr(predicted[:, q], measured[:, q]).statistic for q in range(Q)]
    assert score.per_query == pytest.approx(expected)
    assert score.mean == pytest.approx(np.mean(expected))
    draw = np.random.default_rng(11)
    means = []
    for _ in range(400):
        rows = draw.integers(M, size=M)
        means.append(np.mean([spearmanr(predicted[rows, q], measured[rows, q]).statistic for q in range(Q)]))
    half = 1.96 * np.std(np.arctanh(means), ddof=1)
    expected = np.tanh(np.arctanh(score.mean) - half), np.tanh(np.arctanh(score.mean) + half)
    assert (score.low, score.high) == pytest.approx(expected, abs=0.03)
    assert score.low < score.mean < score.high


def test_the_interval_holds_a_score_that_all_draws_miss() -> None:
    """Near one, percentiles of the draws lie below the score of many queries, which have no spread left to hide it."""
    draw = np.random.default_rng(5)
    predicted = draw.standard_normal((M, 60))
    measured = torch.from_numpy(predicted + 0.15 * draw.standard_normal((M, 60)))
    units = Scores(values=torch.from_numpy(predicted), queries=tuple(f"q{i}" for i in range(60)))
    truth = replace(truth_of(measured, tuple((j,) for j in range(M))), examples=M)
    score = datamodelling_score(units, truth, resamples=200)
    rows = [np.random.default_rng(i).integers(M, size=M) for i in range(50)]
    draws = [np.mean([spearmanr(predicted[r, q], measured[r, q]).statistic for q in range(0, 60, 6)]) for r in rows]
    assert np.quantile(draws, 0.9) < score.mean
    assert score.low < score.mean < score.high < 1
    assert score.high - score.low < 0.05


def test_a_ranking_serves_all_queries(scores: Scores) -> None:
    sets = random_subsets(N, M)
    one = Scores(values=scores.values[:, :1], queries=("random",))
    score = datamodelling_score(one, truth_of(sums(scores, sets), sets), resamples=20)
    assert len(score.per_query) == Q
    assert score.per_query[0] == pytest.approx(1.0)
    assert abs(score.per_query[1]) < 0.9


def test_subsets() -> None:
    sets = random_subsets(N, 40, part=0.25, seed=2)
    assert all(len(set(one)) == 3 and sorted(one) == list(one) for one in sets)
    assert {j for one in sets for j in one} == set(range(N))
    assert sets == random_subsets(N, 40, part=0.25, seed=2) != random_subsets(N, 40, part=0.25, seed=3)
    for wrong in ({"count": 0}, {"count": 3, "part": 0.0}, {"count": 3, "part": 1.0}):
        with pytest.raises(ConfigurationError, match="random_subsets"):
            random_subsets(N, **wrong)  # type: ignore[arg-type]


def test_what_cannot_be_compared(scores: Scores) -> None:
    sets = random_subsets(N, M)
    whole = truth_of(sums(scores, sets), sets)
    with pytest.raises(ConfigurationError, match="at least 10 sets"):
        datamodelling_score(scores, truth_of(sums(scores, sets[:9]), sets[:9]))
    with pytest.raises(ConfigurationError, match="12 examples for 3 queries"):
        datamodelling_score(Scores(values=scores.values[:, :2], queries=("a", "b")), whole)
    with pytest.raises(ConfigurationError, match="12 examples"):
        datamodelling_score(Scores(values=scores.values[:5], queries=scores.queries), whole)
    with pytest.raises(ConfigurationError, match="constants"):
        datamodelling_score(Scores(values=torch.ones(N, 1), queries=("a",)), whole)
