from __future__ import annotations

import numpy as np
import pytest

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import CleansingCurve


def test_mean_and_interval_over_runs() -> None:
    curve = CleansingCurve(method="a", counts=(0, 10), errors=[[0.1, 0.4], [0.2, 0.4], [0.3, 0.4]])
    assert curve.runs == 3
    assert curve.chosen is None
    assert curve.mean == pytest.approx([0.2, 0.4])
    low, high = curve.interval()
    half = (
        4.302652729911275 * 0.1 / np.sqrt(3)
    )  # the 97.5 % point of Student's t with two degrees of freedom, from tables
    assert low == pytest.approx([0.2 - half, 0.4])
    assert high == pytest.approx([0.2 + half, 0.4])
    narrow = curve.interval(0.5)
    assert low[0] < narrow[0][0] < narrow[1][0] < high[0]


def test_one_run_has_no_spread() -> None:
    curve = CleansingCurve(method="a", counts=(0, 10, 20), errors=[0.3, 0.1, 0.1])
    assert curve.runs == 1
    for end in curve.interval():
        assert end.tolist() == [0.3, 0.1, 0.1]
    assert curve.best() == (10, 0.1)


def test_its_errors_cannot_be_changed_from_outside() -> None:
    errors = np.array([[0.3, 0.1]])
    curve = CleansingCurve(method="a", counts=(0, 1), errors=errors)
    errors[0, 0] = 9
    assert curve.mean[0] == 0.3
    with pytest.raises(ValueError, match="read-only"):
        curve.errors[0, 0] = 9  # type: ignore[index]


@pytest.mark.parametrize(
    ("counts", "errors", "message"),
    [
        ((), [[]], "increasing"),
        ((0, 0), [[1, 2]], "increasing"),
        ((5, 3), [[1, 2]], "increasing"),
        ((-1, 3), [[1, 2]], "increasing"),
        ((0, 1), [[1, 2, 3]], r"\[runs, 2\], got \[1, 3\]"),
        ((0, 1), np.zeros((2, 2, 2)), r"\[runs, 2\]"),
        ((0, 1), np.zeros((0, 2)), r"\[runs, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(counts, errors, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CleansingCurve(method="a", counts=counts, errors=errors)


def test_an_error_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match="run 1 without 7 examples"):
        CleansingCurve(method="a", counts=(0, 7), errors=[[0, 0], [0, float("nan")]])


@pytest.mark.parametrize("chosen", [(-1, 0.1), (3, float("nan"))])
def test_a_choice_is_a_number_and_a_finite_error(chosen: tuple[int, float]) -> None:
    with pytest.raises(ConfigurationError, match="chosen of 'a'"):
        CleansingCurve(method="a", counts=(0, 7), errors=[0.1, 0.2], chosen=chosen)
