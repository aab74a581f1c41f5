from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import mcnemar_test, paired_t_test, sign_flip_test, unpaired_t_test

# Student's sleep data (Biometrika 1908): extra hours of sleep of the same ten patients under two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_t_test_on_students_own_data() -> None:
    comparison = paired_t_test(FIRST, SECOND)
    assert comparison.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (comparison.low, comparison.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert comparison.mean_difference == pytest.approx(1.58)
    assert comparison.n == 10
    assert comparison.significant
    assert comparison.sentence() == "paired t test over 10 runs: p = 0.003"


def test_unpaired_t_test_on_students_own_data() -> None:
    comparison = unpaired_t_test(FIRST, SECOND)
    assert comparison.p_value == pytest.approx(0.07939, abs=5e-6)
    assert (comparison.low, comparison.high) == pytest.approx((-0.2054832, 3.3654832), abs=1e-6)
    assert not comparison.significant
    assert unpaired_t_test(FIRST, SECOND[:7]).n == 7


def test_sign_flips_against_counting_by_hand() -> None:
    difference = [3.0, 1.0, -1.0]
    comparison = sign_flip_test([0.0, 0.0, 0.0], difference)
    means = [abs(np.dot(signs, difference)) for signs in itertools.product([-1, 1], repeat=3)]
    assert comparison.p_value == sum(m >= 3.0 for m in means) / 8 == 0.75
    assert comparison.mean_difference == 1.0


def test_few_pairs_cannot_be_significant_and_have_no_interval() -> None:
    comparison = sign_flip_test([0.0] * 5, [-1.0, -2.0, -3.0, -4.0, -5.0])
    assert comparison.p_value == 2 / 2**5
    assert (comparison.low, comparison.high) == (-math.inf, math.inf)
    assert not comparison.significant
    assert sign_flip_test([0.0] * 6, [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]).significant


@given(st.lists(st.integers(-50, 50), min_size=6, max_size=9))
def test_the_sign_flip_interval_leaves_out_zero_exactly_when_the_test_rejects(difference: list[int]) -> None:
    comparison = sign_flip_test([0.0] * len(difference), difference)
    assert (comparison.low > 0 or comparison.high < 0) == (comparison.p_value <= 0.05)
    assert comparison.low <= comparison.mean_difference <= comparison.high


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=10),
    st.sampled_from([paired_t_test, unpaired_t_test, sign_flip_test]),
)
def test_exchanging_before_and_after_mirrors_the_result(pairs, test) -> None:
    before, after = zip(*pairs, strict=True)
    there, back = test(before, after), test(after, before)
    assume(not math.isnan(there.p_value))
    assert there.p_value == pytest.approx(back.p_value)
    assert there.mean_difference == pytest.approx(-back.mean_difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


@pytest.mark.parametrize("shift", [0.0, -0.1])
@pytest.mark.parametrize("test", [paired_t_test, unpaired_t_test])
def test_without_spread_a_t_test_says_nothing(test, shift: float) -> None:
    comparison = test([0.3, 0.3, 0.3], [0.3 + shift] * 3)
    assert math.isnan(comparison.p_value)
    assert not comparison.significant
    assert comparison.mean_difference == pytest.approx(shift)
    assert "undefined" in comparison.sentence()


def test_a_shift_that_is_equal_but_for_rounding_has_no_spread() -> None:
    before = np.array([0.1, 0.2, 0.7])
    assert np.ptp((before + 0.3) - before) > 0, "the test is degenerate"
    assert math.isnan(paired_t_test(before, before + 0.3).p_value)


def test_a_tiny_p_value_is_written_out() -> None:
    before = np.linspace(1, 2, 12)
    assert "p = 0.000" not in paired_t_test(before, before * 0.1).sentence()


@given(sides=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14))
def test_mcnemar_counts_the_ways_in_which_those_that_changed_could_have(sides: list[tuple[bool, bool]]) -> None:
    before, after = zip(*sides, strict=True)
    comparison = mcnemar_test(before, after)
    changed = [b for b, a in sides if b != a]
    mended = sum(changed)
    ways = [sum(way) for way in itertools.product((0, 1), repeat=len(changed))]
    as_far = sum(abs(2 * way - len(changed)) >= abs(2 * mended - len(changed)) for way in ways)
    assert comparison.p_value == pytest.approx(as_far / len(ways))
    assert comparison.mean_difference == pytest.approx((sum(after) - sum(before)) / len(sides))
    assert "over 1 runs" not in comparison.sentence()
    assert f"over {len(sides)} examples: p = " in comparison.sentence()


@pytest.mark.parametrize(
    ("test", "before", "after", "message"),
    [
        (mcnemar_test, [True], [True, False], "the same examples"),
        (mcnemar_test, [], [], "at least 1"),
        (paired_t_test, [1.0], [2.0], "at least 2"),
        (paired_t_test, [1.0, 2.0], [2.0, 3.0, 4.0], "as many runs after as before"),
        (unpaired_t_test, [1.0, 2.0], [2.0], "at least 2 runs"),
        (sign_flip_test, [[1.0, 2.0]], [[2.0, 3.0]], "got shapes"),
        (sign_flip_test, [0.0] * 17, [1.0] * 17, "use paired_t_test"),
    ],
)
def test_too_few_too_many_or_unequal_runs_are_refused(test, before, after, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        test(before, after)


@pytest.mark.parametrize("test", [paired_t_test, unpaired_t_test, sign_flip_test])
def test_a_failed_run_is_refused(test) -> None:
    with pytest.raises(NonFiniteError, match="leave failed runs out"):
        test([1.0, float("nan")], [1.0, 2.0])
