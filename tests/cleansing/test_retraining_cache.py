"""One set of retrainings for several strategies, and how often each helps, by counting."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_sgdinf.cleansing import (
    CleansingContext,
    Evaluation,
    RetrainingCache,
    Selection,
    Stable,
    StrategyOutcome,
    TopK,
    Validated,
    choose_by_each,
    measure_reliability,
)
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Updated

SCORES = Scores(values=torch.arange(8.0)[:, None].double(), queries=("loss",))


class World:
    """Training again: the state says which ids were left out; each removal lowers every loss by its own amount."""

    def __init__(self) -> None:
        self.trained: list[tuple[int, ...]] = []

    def retrain(self, selection: Selection) -> Updated:
        self.trained.append(selection.drop)
        count = torch.tensor(float(len(selection.drop)))
        return Updated(state=ModelState(params={"count": count}), seconds=0.0)

    def evaluate(self, state: ModelState, size: int, best: int) -> Evaluation:
        count = float(state.params["count"])
        losses = torch.linspace(1, 2, size).double() * (1 + (count - best) ** 2 / 100)
        wrong = torch.arange(size) < count
        return Evaluation(
            loss=float(losses.mean()), error=float(wrong.double().mean()), count=size, losses=losses, wrong=wrong
        )

    def outcomes(self) -> RetrainingCache:
        return RetrainingCache(
            self.retrain,
            {"choosing": lambda state: self.evaluate(state, 20, 4), "test": lambda state: self.evaluate(state, 10, 2)},
        )


def test_each_selection_is_trained_once() -> None:
    world = World()
    outcomes = world.outcomes()
    mean, each = outcomes.mean("choosing"), outcomes.each("choosing")
    wrong = outcomes.each("test", "error")
    selection = Selection(drop=(3, 1))
    assert mean(selection) == pytest.approx(float(each(selection).mean()))
    assert wrong(Selection(drop=(1, 3))).tolist() == [True, True] + [False] * 8, "a set, whatever its order"
    assert outcomes.mean("test", "error")(selection) == 0.2
    assert world.trained == [(3, 1)]
    outcomes(Selection(relabel={1: 0}))
    outcomes(Selection(relabel={1: 2}))
    assert outcomes.trained == 3


def test_unknown_data_and_metrics_are_refused() -> None:
    outcomes = World().outcomes()
    with pytest.raises(ConfigurationError, match="expected one of choosing, test, got 'training'"):
        outcomes.mean("training")
    with pytest.raises(ConfigurationError, match="metric: expected"):
        outcomes.each("test", "margin")  # type: ignore[arg-type]


def test_two_strategies_choose_from_one_set_of_retrainings() -> None:
    world = World()
    outcomes = world.outcomes()
    context = CleansingContext(evaluate=outcomes.mean("choosing"), evaluate_each=outcomes.each("choosing"))
    grid = (1, 2, 4, 6)
    strategies = {"validated": Validated(grid), "stable": Stable(grid), "five": TopK(5)}
    chosen_by = choose_by_each(strategies, SCORES, context, outcomes.mean("test"))
    # The largest harm is that of the smallest score; best on the choosing data are 4, any removal helps there.
    assert chosen_by["validated"].selection.drop == (0, 1, 2, 3)
    assert chosen_by["stable"].selection.drop == (0,)
    assert [len(drop) for drop in world.trained] == [0, 1, 2, 4, 6, 5]
    by_count = {c: 1.5 * (1 + (c - 2) ** 2 / 100) for c in (0, 1, 4, 5)}
    for name, count in (("validated", 4), ("stable", 1), ("five", 5)):
        assert chosen_by[name].count == count
        assert chosen_by[name].before == pytest.approx(by_count[0])
        assert chosen_by[name].after == pytest.approx(by_count[count])


def chosen(count: int, before: float, after: float) -> StrategyOutcome:
    return StrategyOutcome(selection=Selection(drop=tuple(range(count))), before=before, after=after)


def test_helps_and_harms_are_counted() -> None:
    runs = [
        {"a": chosen(3, 0.5, 0.4), "b": chosen(0, 0.5, 0.5)},
        {"a": chosen(1, 0.5, 0.6), "b": chosen(2, 0.5, 0.5)},
        {"a": chosen(2, 0.5, 0.3)},
    ]
    rates = measure_reliability(runs)
    assert list(rates) == ["a", "b"]
    a, b = rates["a"], rates["b"]
    assert (a.runs, a.helped, a.harmed, a.abstained) == (3, 2, 1, 0)
    assert (b.runs, b.helped, b.harmed, b.abstained) == (2, 0, 0, 1)
    assert a.mean_change == pytest.approx(-0.2 / 3)
    assert a.worst_change == pytest.approx(0.1)
    assert (a.mean_count, b.mean_count) == (2.0, 1.0)


def test_nothing_and_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="one run or more"):
        measure_reliability([])
    with pytest.raises(NonFiniteError, match="'a' is not finite"):
        measure_reliability([{"a": chosen(1, 0.5, math.nan)}])
