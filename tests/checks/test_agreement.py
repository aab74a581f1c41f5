"""The correlation over all examples, from a few: exact where all are known, right on average where they are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_sgdinf.checks.agreement import agreement, spread_sample

EVERYBODY = torch.arange(200)


def population(noise: float, seed: int, *, growing: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """Predicted changes with heavy tails, as scores have them, and true ones that miss them by some noise."""
    random = np.random.default_rng(seed)
    predicted = random.standard_t(4, len(EVERYBODY))
    size = np.abs(predicted) + 0.1 if growing else np.ones(len(predicted))
    return torch.tensor(predicted), 0.8 * predicted + noise * size * random.standard_normal(len(predicted))


def test_a_sample_has_the_extremes_and_what_lies_between() -> None:
    scores = torch.linspace(-1, 3, 200, dtype=torch.float64)[torch.randperm(200, generator=torch.Generator())]
    ids = spread_sample(scores, EVERYBODY, 12)
    assert len(ids) == 12
    assert {int(scores.argmin()), int(scores.argmax())} <= set(ids)
    values = scores[ids].sort().values
    assert float(values.diff().max()) < 1.5  # no gap
    assert spread_sample(scores, EVERYBODY, 12) == ids != spread_sample(scores, EVERYBODY, 12, seed=1)


def test_few_examples_are_all_taken_and_equal_scores_are_no_obstacle() -> None:
    some = torch.tensor([3, 5, 8])
    assert spread_sample(torch.zeros(200), some, 6) == [3, 5, 8]
    assert len(spread_sample(torch.zeros(200), EVERYBODY, 6)) == 6
    one = torch.zeros(200)
    one[17] = 1.0
    assert 17 in spread_sample(one, EVERYBODY, 6)


def test_where_all_are_known_it_is_the_correlation() -> None:
    predicted, true = population(0.5, 0)
    said = agreement(predicted, list(range(200)), true.tolist())
    assert said.low == said.correlation == said.high == pytest.approx(np.corrcoef(predicted, true)[0, 1], rel=1e-12)
    assert said.slope == pytest.approx(np.polyfit(predicted, true, 1)[0], rel=1e-9)
    assert said.right_signs == np.mean(np.sign(predicted.numpy()) == np.sign(true))


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("noise", [0.05, 0.5, 3.0])
def test_the_interval_holds_the_truth_and_the_figure_is_not_that_of_the_extremes(noise: float, growing: bool) -> None:
    covered, figures, naive, truths = [], [], [], []
    for seed in range(25):
        predicted, true = population(noise, seed, growing=growing)
        truth = float(np.corrcoef(predicted, true)[0, 1])
        ids = spread_sample(predicted, EVERYBODY, 16, seed)
        said = agreement(predicted, ids, true[ids].tolist(), seed)
        assert said.low <= said.correlation <= said.high
        covered.append(said.low - 0.005 <= truth <= said.high + 0.005)
        figures.append(said.correlation)
        naive.append(float(np.corrcoef(predicted[ids], true[ids])[0, 1]))
        truths.append(truth)
    assert sum(covered) >= 21
    if noise == 0.5 and not growing:  # a sample with the extremes correlates better than everybody does
        bias = abs(np.mean(figures) - np.mean(truths))
        assert bias < 0.03 < np.mean(naive) - np.mean(truths)


def test_scores_that_say_nothing_have_no_correlation() -> None:
    for predicted, true in ((torch.zeros(200), [1.0, 2.0, 3.0]), (torch.arange(200.0), [0.0, 0.0, 0.0])):
        said = agreement(predicted, [0, 7, 9], true)
        assert math.isnan(said.correlation)
        assert (said.low, said.high) == (-1.0, 1.0)


def test_large_populations_are_filled_in_by_a_part() -> None:
    random = np.random.default_rng(0)
    predicted = torch.tensor(random.standard_normal(20_000))
    true = predicted.numpy() + 0.5 * random.standard_normal(20_000)
    ids = spread_sample(predicted, torch.arange(20_000), 40)
    said = agreement(predicted, ids, true[ids].tolist())
    assert said.low < np.corrcoef(predicted, true)[0, 1] < said.high
    assert said.high - said.low < 0.4
