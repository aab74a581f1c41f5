"""Progress of training again."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_sgdinf.cleansing import Stable, TopK, Validated
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.studies.pipeline import ReportSettings
from lightning_sgdinf.studies.retraining import shown, trainings_at_most


@pytest.mark.parametrize("most", [None, 3])
def test_a_bar_counts_trainings_and_changes_nothing(most: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []

    def retrain(selection: Selection) -> Any:
        asked.append(selection)
        return len(asked)

    with shown(retrain, most=most, progress=True) as counted:
        assert [counted(Selection(drop=(j,))) for j in range(2)] == [1, 2]
    assert asked == [Selection(drop=(0,)), Selection(drop=(1,))]
    told = capsys.readouterr()
    assert ("training again, at most" in told.err) == (most is not None)
    assert "training again" in told.err
    assert told.out == ""
    with shown(retrain, most=most, progress=False) as counted:
        assert counted is retrain
    assert capsys.readouterr().err == ""


def test_trainings_are_counted_where_the_strategy_says_how_many() -> None:
    assert trainings_at_most(Validated(grid=(2, 5)), 3, 2, 100) == 1 + 2 + 6
    assert trainings_at_most(Stable(), 0, 2, 100) == 1 + 3  # 3, 10, 30
    assert trainings_at_most(TopK(3), 3, 2, 100) is None


@pytest.mark.parametrize(
    ("total", "counts"),
    [(1, ()), (2, (1,)), (24, (3, 10)), (90, (3, 10, 30)), (900, (10, 30, 100, 300)), (10**6, (10, 30, 100, 300))],
)
def test_curves_have_counts_of_their_own_where_nobody_gave_any(
    total: int, counts: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert ReportSettings(curve_counts=None).counts_below(total) == counts
    assert caplog.messages == []
    assert ReportSettings(curve_counts=(total,)).counts_below(total) == ()
    assert caplog.messages == [f"report.curve_counts: [{total}] are not drawn, there are {total} training examples"]
