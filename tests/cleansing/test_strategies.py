"""Strategies against brute force on plain lists of numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_sgdinf.cleansing import (
    CleansingContext,
    Negative,
    Relabel,
    Selection,
    SkippedCountWarning,
    TopFraction,
    TopK,
    Trial,
    Validated,
)
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.scores import Scores

finite = st.floats(-5.0, 5.0, allow_nan=False)
columns = st.lists(finite, min_size=2, max_size=30)
NOTHING = CleansingContext()


def scores_of(values: list[float], better: str = "lower") -> Scores:
    return Scores(values=torch.tensor([values], dtype=torch.float64).T, queries=("loss",), better=(better,))


def by_hand(values: list[float], better: str = "lower") -> list[int]:
    """Ids, most harmful first: for a loss the most negative score first; equal scores by id."""
    sign = 1.0 if better == "lower" else -1.0
    return sorted(range(len(values)), key=lambda j: (sign * values[j], j))


@given(columns, st.sampled_from(["lower", "higher"]), st.data())
def test_top_k_drops_a_prefix_of_the_order(values: list[float], better: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values) - 1))
    selection = TopK(k).select(scores_of(values, better), NOTHING)
    assert list(selection.drop) == by_hand(values, better)[:k]
    assert not selection.relabel


def test_top_k_goes_by_the_query_asked_for() -> None:
    values = torch.tensor([[0.0, 3.0], [-1.0, 2.0], [-2.0, 4.0]], dtype=torch.float64)
    scores = Scores(values=values, queries=("loss", "margin"), better=("lower", "higher"))
    assert TopK(1).select(scores, NOTHING).drop == (2,)
    assert TopK(2).select(scores, NOTHING, "margin").drop == (2, 0)
    assert TopK(2).select(scores, NOTHING, "loss").drop == (2, 1)


def test_top_k_leaves_something_to_train_on() -> None:
    with pytest.raises(ConfigurationError, match="expected 0 to 2 of 3, got 3"):
        TopK(3).select(scores_of([1.0, 2.0, 3.0]), NOTHING)
    with pytest.raises(ConfigurationError, match="k: expected a whole number of at least 0, got -1"):
        TopK(-1)


@pytest.mark.parametrize(
    ("fraction", "total", "count"), [(0.0, 10, 0), (0.29, 100, 29), (0.05, 10, 1), (0.04, 10, 0), (0.999, 3, 2)]
)
def test_top_fraction_rounds_to_the_nearest_count(fraction: float, total: int, count: int) -> None:
    values = [float(-j) for j in range(total)]
    assert list(TopFraction(fraction).select(scores_of(values), NOTHING).drop) == by_hand(values)[:count]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_top_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"in \[0, 1\)"):
        TopFraction(fraction)


@given(columns, st.floats(0.0, 5.0), st.sampled_from(["lower", "higher"]))
def test_negative_drops_exactly_what_is_beyond_the_threshold(
    values: list[float], threshold: float, better: str
) -> None:
    harmful = {j for j, v in enumerate(values) if (v < -threshold if better == "lower" else v > threshold)}
    strategy, scores = Negative(threshold), scores_of(values, better)
    if len(harmful) == len(values):
        with pytest.raises(ConfigurationError, match="number of examples to change"):
            strategy.select(scores, NOTHING)
        return
    selection = strategy.select(scores, NOTHING)
    assert set(selection.drop) == harmful
    assert list(selection.drop) == by_hand(values, better)[: len(harmful)]


def test_negative_drops_nothing_when_all_is_helpful_or_zero() -> None:
    assert Negative().select(scores_of([0.0, 0.0, 2.0, 1e-300]), NOTHING).drop == ()
    assert Negative().select(scores_of([0.0, -1e-300]), NOTHING).drop == (1,)


@pytest.mark.parametrize("threshold", [-1.0, math.nan])
def test_negative_refuses_a_threshold_below_zero(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        Negative(threshold)


class Classes:
    """Predictions that remember what was asked."""

    def __init__(self, classes: list[int]) -> None:
        self.classes = torch.tensor(classes)
        self.asked: list[int] = []

    def __call__(self, ids: tuple[int, ...]) -> torch.Tensor:
        self.asked += ids
        return self.classes[list(ids)]


@pytest.mark.filterwarnings("ignore::lightning_sgdinf.cleansing.InfeasibleWarning")
@given(st.lists(st.tuples(finite, st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=20), st.data())
def test_relabel_gives_the_models_label_where_it_differs(
    rows: list[tuple[float, int, int]], data: st.DataObject
) -> None:
    values, given_labels, predicted = ([*column] for column in zip(*rows, strict=True))
    k = data.draw(st.integers(0, len(rows) - 1))
    classes = Classes(predicted)
    context = CleansingContext(labels=torch.tensor(given_labels), predictions=classes, on_excess="warn")
    selection = Relabel(k).select(scores_of(values), context)
    looked_at = by_hand(values)[:k]
    assert classes.asked == looked_at
    assert selection.drop == ()
    assert list(selection.relabel.items()) == [(j, predicted[j]) for j in looked_at if predicted[j] != given_labels[j]]
    assert f"for {k - len(selection.relabel)} of them" in selection.reason


def test_relabel_takes_a_fraction() -> None:
    context = CleansingContext(labels=torch.tensor([0, 0, 0, 0]), predictions=Classes([1, 1, 1, 1]))
    selection = Relabel(fraction=0.5).select(scores_of([-1.0, 0.0, -3.0, 0.0]), context)
    assert selection.relabel == {2: 1, 0: 1}


@pytest.mark.parametrize("arguments", [{}, {"k": 1, "fraction": 0.1}, {"k": -1}, {"fraction": 1.0}])
def test_relabel_refuses_counts_that_mean_nothing(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Relabel(**arguments)


@pytest.mark.parametrize(
    ("context", "named"),
    [
        (CleansingContext(labels=torch.tensor([0, 1])), "predictions"),
        (CleansingContext(predictions=Classes([0, 1])), "labels"),
        (CleansingContext(), "labels and predictions"),
        (CleansingContext(labels=torch.tensor([0, 1, 1]), predictions=Classes([0, 1])), "labels: expected 2"),
        (CleansingContext(labels=torch.tensor([0.0, 1.0]), predictions=Classes([0, 1])), "labels: expected 2 whole"),
        (
            CleansingContext(labels=torch.tensor([0, 1]), predictions=lambda ids: torch.zeros(len(ids), 2)),
            "predictions: expected 1",
        ),
    ],
)
def test_relabel_says_what_is_missing(context: CleansingContext, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Relabel(1).select(scores_of([0.0, 1.0]), context)


class HeldOut:
    """A held-out value by the number of examples changed, and what was asked."""

    def __init__(self, values: dict[int, float]) -> None:
        self.values = values
        self.asked: list[Selection] = []

    def __call__(self, selection: Selection) -> float:
        self.asked.append(selection)
        return self.values[len(selection)]


def test_validated_chooses_the_count_with_the_lowest_value() -> None:
    held_out = HeldOut({0: 1.0, 1: 0.9, 2: 0.7, 4: 0.8})
    values = [-0.5, -2.0, 1.0, -1.0, 0.0]
    selection = Validated(grid=(1, 2, 4)).select(scores_of(values), CleansingContext(evaluate=held_out))
    assert selection.drop == (1, 3)
    assert selection.trace == (Trial(0, 1.0), Trial(1, 0.9), Trial(2, 0.7), Trial(4, 0.8))
    assert [len(s) for s in held_out.asked] == [0, 1, 2, 4]
    assert "0.7 against 1 with 0" in selection.reason


@pytest.mark.filterwarnings("ignore::lightning_sgdinf.cleansing.InfeasibleWarning")
@given(columns, st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True).map(sorted), st.data())
def test_validated_picks_the_best_prefix_of_the_order(
    values: list[float], grid: list[int], data: st.DataObject
) -> None:
    tried = [m for m in grid if m < len(values)]
    held_out = HeldOut({m: data.draw(st.floats(0.0, 1.0)) for m in [0, *tried]})
    context = CleansingContext(evaluate=held_out, on_excess="warn")
    selection = Validated(grid=grid).select(scores_of(values), context)
    lowest = min(held_out.values.values())
    best = min(m for m in [0, *tried] if held_out.values[m] == lowest)
    assert list(selection.drop) == by_hand(values)[:best]
    assert [t.count for t in selection.trace] == [0, *tried]
    assert all(list(s.drop) == by_hand(values)[: len(s)] for s in held_out.asked)


def test_validated_removes_nothing_when_nothing_helps() -> None:
    context = CleansingContext(evaluate=HeldOut({0: 0.5, 1: 0.5, 2: 0.6}))
    selection = Validated(grid=(1, 2)).select(scores_of([-1.0, -2.0, 0.0]), context)
    assert selection.drop == ()
    assert len(selection.trace) == 3


def test_validated_stops_when_patience_ends() -> None:
    held_out = HeldOut({0: 1.0, 1: 2.0, 2: 0.9, 3: 2.0, 4: 2.0, 5: 0.0})
    context = CleansingContext(evaluate=held_out)
    scores = scores_of([0.0] * 9)
    assert len(Validated(grid=(1, 2, 3, 4, 5), patience=2).select(scores, context)) == 2
    assert [len(s) for s in held_out.asked] == [0, 1, 2, 3, 4]
    assert len(Validated(grid=(1, 2, 3, 4, 5), patience=1).select(scores, context)) == 0
    assert len(Validated(grid=(1, 2, 3, 4, 5), patience=3).select(scores, context)) == 5


def test_validated_can_choose_how_many_to_relabel() -> None:
    context = CleansingContext(
        labels=torch.tensor([0, 0, 0]), predictions=Classes([1, 1, 0]), evaluate=HeldOut({0: 1.0, 1: 0.5, 2: 0.7})
    )
    selection = Validated(grid=(1, 2), treatment=Relabel).select(scores_of([-1.0, -2.0, 0.0]), context)
    assert (selection.drop, selection.relabel) == ((), {1: 1})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_validated_skips_a_count_that_diverges_and_tries_the_others(value: float) -> None:
    context = CleansingContext(evaluate=HeldOut({0: 1.0, 1: value, 2: 0.5}))
    with pytest.warns(
        SkippedCountWarning, match="1 examples changed: skipped.* with 1 examples changed: expected a fi"
    ):
        selection = Validated(grid=(1, 2)).select(scores_of([-2.0, -1.0, 0.0]), context)
    assert selection.drop == (0, 1)
    assert [trial.count for trial in selection.trace] == [0, 2]
    with pytest.raises(NonFiniteError, match="with 0 examples changed"):
        Validated(grid=(1,)).select(scores_of([-1.0, 0.0]), CleansingContext(evaluate=HeldOut({0: value, 1: 1.0})))


@pytest.mark.parametrize(
    "arguments", [{"grid": ()}, {"grid": (0, 1)}, {"grid": (3, 1)}, {"grid": (1, 1)}, {"patience": 0}]
)
def test_validated_refuses_settings_that_mean_nothing(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Validated(**arguments)


def test_validated_needs_held_out_data() -> None:
    with pytest.raises(ConfigurationError, match="needs `evaluate`"):
        Validated().select(scores_of([0.0, 1.0]), NOTHING)


def test_labels_that_are_no_classes_are_refused() -> None:
    for labels in (torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ConfigurationError, match="labels: expected a class, a whole number, for each"):
            TopK(1).select(scores_of([0.0, 1.0, 2.0]), CleansingContext(labels=labels))
