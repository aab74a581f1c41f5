from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_sgdinf.evaluation import compare_removals, holm, paired_t_test, wilcoxon_test

BEFORE = {0: 0.10, 1: 0.12, 2: 0.11, 3: 0.10}


def test_runs_are_paired_and_those_without_a_partner_passed_over() -> None:
    after = {30: {0: 0.09, 2: 0.08, 7: 0.5}, 10: {0: 0.09, 1: 0.10, 2: 0.10, 3: 0.08}, 100: {9: 0.3}}
    removals = compare_removals(BEFORE, after)
    assert [(r.count, r.runs) for r in removals] == [(10, 4), (30, 2)]
    ten, thirty = removals
    assert thirty.before.tolist() == [0.10, 0.11]
    assert thirty.after.tolist() == [0.09, 0.08]
    assert ten.mean == pytest.approx(0.0925)
    assert ten.deviation == pytest.approx(math.sqrt(np.sum((np.array([0.09, 0.10, 0.10, 0.08]) - 0.0925) ** 2) / 3))
    low, high = ten.interval()
    assert (high - low) / 2 == pytest.approx(3.182446 * ten.deviation / 2, rel=1e-6)  # t of 3 degrees of freedom
    # Two counts: the smaller p value doubles, the larger one stays if that is still larger.
    p_values = [ten.t_test.p_value, thirty.t_test.p_value]
    assert p_values[0] == paired_t_test([0.10, 0.12, 0.11, 0.10], [0.09, 0.10, 0.10, 0.08]).p_value
    assert [ten.t_adjusted, thirty.t_adjusted] == pytest.approx([2 * p_values[0], max(2 * p_values[0], p_values[1])])


def test_a_single_run_has_no_test_and_no_interval() -> None:
    (only,) = compare_removals({4: 0.2}, {3: {4: 0.1}})
    assert (only.t_test, only.wilcoxon) == (None, None)
    assert math.isnan(only.t_adjusted)
    assert math.isnan(only.deviation)
    assert only.interval() == (0.1, 0.1)


def test_counts_that_were_looked_at_and_are_not_there_are_corrected_for() -> None:
    after = {10: {0: 0.09, 1: 0.10, 2: 0.10, 3: 0.08}}
    (alone,), (one_of_five,) = compare_removals(BEFORE, after), compare_removals(BEFORE, after, correct_over=5)
    assert alone.t_adjusted == alone.t_test.p_value
    assert one_of_five.t_adjusted == pytest.approx(5 * alone.t_adjusted)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    with_gap = holm([0.01, math.nan, 0.02])
    assert with_gap[[0, 2]].tolist() == pytest.approx([0.02, 0.02])
    assert math.isnan(with_gap[1])


def test_wilcoxon_on_students_own_data() -> None:
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    comparison = wilcoxon_test(first, second)
    assert comparison.p_value == 2 / 2**9  # nine of ten differ, all in one direction
    assert (comparison.n, comparison.mean_difference) == (10, pytest.approx(1.58))
    assert wilcoxon_test(second, first).p_value == comparison.p_value


def test_wilcoxon_by_counting_all_signs() -> None:
    difference = np.array([3.0, -1.0, 2.0, 2.0, -5.0, 1.0])  # with ties
    size = np.abs(difference)
    ranks = np.array([np.sum(size < s) + (np.sum(size == s) + 1) / 2 for s in size])
    signs = 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1) - 1
    sums = np.abs(signs @ ranks)
    expected = np.mean(sums >= abs(np.sign(difference) @ ranks))
    assert wilcoxon_test(np.zeros(6), difference).p_value == pytest.approx(expected)


def test_wilcoxon_of_many_pairs_and_of_none() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=30)
    assert wilcoxon_test(before, before - 1 - 0.1 * rng.random(30)).p_value < 1e-5
    assert wilcoxon_test(before, before + rng.normal(size=30)).p_value > 1e-3
    assert math.isnan(wilcoxon_test([0.1, 0.2], [0.1, 0.2]).p_value)
    assert wilcoxon_test([0.1, 0.2], [0.1, 0.3]).p_value == 1  # one that differs could as well have done otherwise


def test_rounding_does_not_break_ties() -> None:
    """Differences of 0.1 that come out as 0.1 and 0.09999999999999998."""
    assert wilcoxon_test([0.3, 0.2, 0.5], [0.2, 0.3, 0.4]).p_value == wilcoxon_test([3, 2, 5], [2, 3, 4]).p_value
