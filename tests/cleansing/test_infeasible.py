"""Removals that leave too little: refused or warned of, never silent."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sgdinf.cleansing import (
    CleansingContext,
    Evaluation,
    InfeasibleWarning,
    Negative,
    Relabel,
    Selection,
    Stable,
    TopFraction,
    TopK,
    Validated,
    cleansing_curve,
)
from lightning_sgdinf.cleansing.grid import default_grid
from lightning_sgdinf.cleansing.infeasible import lost_classes
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Updated

LABELS = torch.tensor([2, 2, 0, 1, 0, 1])
SCORES = Scores(values=torch.tensor([[-6.0], [-5.0], [-4.0], [-3.0], [-2.0], [-1.0]]).double(), queries=("loss",))


def context(on_excess: Any = "refuse", **more: Any) -> CleansingContext:
    return CleansingContext(labels=LABELS, on_excess=on_excess, **more)


@pytest.mark.parametrize("strategy", [TopK(6), TopK(9), Negative(), Relabel(k=7)])
def test_more_than_there_are(strategy: Any) -> None:
    ones = context(predictions=lambda ids: LABELS[list(ids)])
    with pytest.raises(ConfigurationError, match=r"expected 0 to 5 of 6, got \d; take fewer, or on_excess='warn'"):
        strategy.select(SCORES, ones)
    cut = CleansingContext(labels=LABELS, predictions=ones.predictions, on_excess="warn")
    with pytest.warns(InfeasibleWarning) as caught:
        selection = strategy.select(SCORES, cut)
    assert "expected 0 to 5 of 6" in str(caught[0].message)
    if not isinstance(strategy, Relabel):
        assert selection.drop == (0, 1, 2, 3, 4)
        assert "nothing is left of class 0, 2" in str(caught[1].message)


@pytest.mark.parametrize("strategy", [TopK(2), TopFraction(1 / 3), Negative(4.5)])
def test_a_class_that_is_gone(strategy: Any) -> None:
    with pytest.raises(ConfigurationError, match="2 examples and with 0 relabelled, nothing is left of class 2"):
        strategy.select(SCORES, context())
    with pytest.warns(InfeasibleWarning, match="nothing is left of class 2"):
        assert strategy.select(SCORES, context("warn")).drop == (0, 1)
    assert strategy.select(SCORES, CleansingContext()).drop == (0, 1), "without labels nobody can know"


def test_a_class_that_is_relabelled_away() -> None:
    away = context(predictions=lambda ids: torch.zeros(len(ids), dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="without 0 examples and with 2 relabelled"):
        Relabel(k=2).select(SCORES, away)
    exchanged = context(predictions=lambda ids: torch.tensor([0, 0, 2])[: len(ids)])
    assert Relabel(k=3).select(SCORES, exchanged).relabel == {0: 0, 1: 0, 2: 2}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["keep", "drop", 0, 1, 2])), min_size=1, max_size=12))
def test_lost_classes_by_sets(examples: list[tuple[int, Any]]) -> None:
    labels = [label for label, _ in examples]
    drop = tuple(j for j, (_, what) in enumerate(examples) if what == "drop")
    relabel = {j: what for j, (_, what) in enumerate(examples) if isinstance(what, int)}
    left = {relabel.get(j, label) for j, label in enumerate(labels) if j not in drop}
    assert lost_classes(torch.tensor(labels), drop, relabel) == sorted(set(labels) - left)


def test_a_grid_is_looked_at_before_anything_is_trained() -> None:
    asked: list[int] = []

    def evaluate(selection: Selection) -> float:
        asked.append(len(selection))
        return 1.0 - 0.1 * len(selection)

    for grid, message in (((1, 2), "left of class 2"), ((1, 6, 30), r"expected counts below 6.*\[6, 30\]")):
        with pytest.raises(ConfigurationError, match=message):
            Validated(grid=grid).select(SCORES, context(evaluate=evaluate))
    assert asked == []
    with pytest.warns(InfeasibleWarning, match=r"\[6, 30\]"):
        assert len(Validated(grid=(1, 6, 30)).select(SCORES, context("warn", evaluate=evaluate))) == 1
    assert asked == [0, 1]


def test_the_default_grid_fits_the_training_set() -> None:
    assert default_grid(900) == (3, 10, 30, 100, 300)
    assert default_grid(50_000) == (3, 10, 30, 100, 300, 1000, 3000, 10_000)
    assert default_grid(6) == (3,)
    assert default_grid(2) == (1,)
    one_each = Scores(values=torch.arange(900.0)[:, None].double(), queries=("loss",))
    tried = Validated().select(one_each, CleansingContext(evaluate=lambda selection: 1.0)).trace
    assert [trial.count for trial in tried] == [0, 3, 10, 30, 100, 300]


def test_curves() -> None:
    trained: list[int] = []

    def retrain(selection: Selection) -> Updated:
        trained.append(len(selection))
        return Updated(state=ModelState(params={}), seconds=0.0)

    def evaluate(state: ModelState) -> Evaluation:
        return Evaluation(loss=0.0, error=0.0, count=1)

    with pytest.raises(ConfigurationError, match="left of class 2"):
        cleansing_curve(retrain, range(6), (0, 1, 2), evaluate, context())
    assert trained == []
    with pytest.warns(InfeasibleWarning, match="left of class 2"):
        cleansing_curve(retrain, range(6), (0, 1, 2), evaluate, context("warn"))
    assert trained == [0, 1, 2]


def test_only_the_two_ways_are_known() -> None:
    with pytest.raises(ConfigurationError, match="expected 'refuse' or 'warn', got 'ignore'"):
        TopK(6).select(SCORES, context("ignore"))


@pytest.mark.parametrize("strategy", [Validated, partial(Stable, simultaneous=True)])
def test_a_count_that_nobody_asked_for_is_not_tried_where_it_leaves_too_little(strategy: Any) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    scores = Scores(values=torch.arange(-8.0, 0.0).double()[:, None], queries=("loss",))
    measures: dict[str, Any] = {
        "evaluate": lambda selection: 1.0 - 0.1 * len(selection.drop),
        "evaluate_each": lambda selection: torch.full((5,), 1.0 - 0.1 * len(selection.drop)),
    }
    both = CleansingContext(labels=labels, **measures)
    assert strategy().select(scores, both).drop == (0, 1, 2)
    few = replace(both, labels=torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]))
    with pytest.warns(InfeasibleWarning, match="3 examples changed: not tried, .* nothing is left of class 0"):
        assert strategy().select(scores, few).drop == ()
    with pytest.raises(ConfigurationError, match="nothing is left of class 0"):
        strategy(grid=(2, 3)).select(scores, few)
