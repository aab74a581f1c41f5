from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import jaccard_of_extremes, kendall_tau, measure_agreement, pearson, spearman


def tau_by_pairs(a, b) -> float:
    """Tau-b from its definition, over all pairs."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in itertools.combinations(range(len(a)), 2)]
    return sum(x * y for x, y in signs) / math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


def mean_ranks(a) -> list[float]:
    return [sum(x < y for x in a) + (sum(x == y for x in a) - 1) / 2 for y in a]


def correlation(a, b) -> float:
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


varied = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=15).filter(
    lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
)


@given(varied)
def test_correlations_equal_their_definitions_ties_included(pairs: list[tuple[int, int]]) -> None:
    a, b = (list(map(float, column)) for column in zip(*pairs, strict=True))
    assert kendall_tau(a, b) == pytest.approx(tau_by_pairs(a, b), abs=1e-12)
    assert spearman(a, b) == pytest.approx(correlation(mean_ranks(a), mean_ranks(b)), abs=1e-12)
    assert pearson(a, b) == pytest.approx(correlation(a, b), abs=1e-12)


@given(varied, st.integers(1, 7))
def test_jaccard_equals_set_arithmetic(pairs: list[tuple[int, int]], k: int) -> None:
    a, b = zip(*pairs, strict=True)
    if 2 * k > len(a):
        with pytest.raises(ConfigurationError, match="half of"):
            jaccard_of_extremes(a, b, k=k)
        return

    def extremes(scores) -> set[int]:
        order = sorted(range(len(scores)), key=lambda j: (scores[j], j))
        return set(order[:k] + order[len(order) - k :])

    expected = len(extremes(a) & extremes(b)) / len(extremes(a) | extremes(b))
    assert jaccard_of_extremes(a, b, k=k) == expected


def test_agreement_gathers_all_and_takes_tensors() -> None:
    true = torch.arange(30.0, dtype=torch.float64)
    agreement = measure_agreement(true**3, true, k=10)
    assert (agreement.kendall, agreement.spearman, agreement.jaccard) == pytest.approx((1, 1, 1))
    assert 0.8 < agreement.pearson < 1
    assert (agreement.k, agreement.n) == (10, 30)
    assert measure_agreement(-true, true).kendall == pytest.approx(-1)


@pytest.mark.parametrize("measure", [kendall_tau, spearman, pearson])
def test_a_constant_has_no_correlation(measure) -> None:
    with pytest.raises(ConfigurationError, match=r"true: all 3 scores are 2\.0"):
        measure([1, 2, 3], [2, 2, 2])
    with pytest.raises(ConfigurationError, match="estimated"):
        measure([1, 1, 1], [1, 2, 3])


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2, 3]), ([1], [1]), ([[1, 2]], [[1, 2]])])
def test_scores_of_different_examples_are_refused(a, b) -> None:
    with pytest.raises(ConfigurationError, match="same examples"):
        pearson(a, b)


def test_a_score_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match="true: score of example 1"):
        spearman([1, 2, 3], [1, float("nan"), 3])


def test_at_least_one_example_of_each_end() -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 2"):
        jaccard_of_extremes([1, 2, 3, 4], [1, 2, 3, 4], k=0)
