from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import Comparison, detect
from lightning_sgdinf.report import BeforeAfter, Example, Explanation, ReportData
from lightning_sgdinf.scores import Scores


def data_of(values: list[float], **fields) -> ReportData:
    better = fields.pop("better", "lower")
    scores = Scores(values=torch.tensor(values)[:, None], queries=("loss",), better=(better,))
    return ReportData(title="t", scores=scores, **fields)


def test_pictures_are_clipped_and_may_have_one_channel() -> None:
    example = Example(image=np.array([[[-1.0], [2.0]], [[0.5], [1.0]]]))
    assert example.image.tolist() == [[0, 1], [0.5, 1]]
    assert Example(image=torch.zeros(4, 5, 3)).image.shape == (4, 5, 3)


@pytest.mark.parametrize("shape", [(4,), (3, 4, 2), (1, 3, 4, 4), (0, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"expected shape \[H, W\]"):
        Example(image=np.zeros(shape))


def test_a_pixel_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="transform"):
        Example(image=np.array([[float("nan")]]))


def test_mislabelled_means_known_to_be_wrong() -> None:
    assert Example(label="1", true_label="7").mislabelled
    assert not Example(label="1", true_label="1").mislabelled
    assert not Example(label="1").mislabelled


def test_corrupt_ids_come_from_the_examples_unless_given() -> None:
    examples = {0: Example(label="1", true_label="7"), 1: Example(label="1", true_label="1")}
    assert data_of([1.0, 2.0], examples=examples).known_corrupt == {0}
    assert data_of([1.0, 2.0], examples=examples, corrupt=frozenset({1})).known_corrupt == {1}
    assert data_of([1.0, 2.0], examples=examples, corrupt=frozenset()).known_corrupt == set()


@pytest.mark.parametrize(
    "fields",
    [
        {"examples": {2: Example()}},
        {"corrupt": frozenset({-1})},
        {"explanations": (Explanation(title="", example=Example(), causes=((5, 0.0),), query="q"),)},
    ],
)
def test_ids_outside_the_training_set_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigurationError, match="0 to 1"):
        data_of([1.0, 2.0], **fields)


def test_unknown_queries_and_empty_sheets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'loss'"):
        data_of([1.0], query="other")
    with pytest.raises(ConfigurationError, match="at least 1"):
        data_of([1.0], shown=0)
    with pytest.raises(ConfigurationError, match="test error"):
        BeforeAfter(metric="test error", before=(), after=(1.0,))


def test_the_result_without_more_is_the_worst_example() -> None:
    assert data_of([0.5, -0.25, 0.0]).result() == (
        "The most harmful training example is 1: leaving it out is predicted to lower loss by 0.25."
    )
    assert "is 0: leaving it out is predicted to raise loss by 0.5" in data_of([0.5, -0.25], better="higher").result()
    assert data_of([0.5, 0.25]).result().startswith("No training example harms loss")


def test_the_result_of_detection_counts_what_was_found() -> None:
    harm = torch.tensor([5.0, 4.0, 3.0, 2.0])
    data = data_of([0.0] * 4, detections={"loss": detect(harm, [0, 3])})
    assert data.result() == (
        "Of the 2 examples that loss ranks most harmful, 1 are known to be corrupt; chance would find 1.0."
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            BeforeAfter(metric="test error", before=(0.25,), after=(0.05,), removed=1200),
            "Leaving out the 1,200 most harmful examples lowered test error from 25.0 % to 5.00 % (one run).",
        ),
        (
            BeforeAfter(metric="loss", before=(1.0, 2.0), after=(2.0, 3.0), percent=False),
            "Cleansing raised loss from 1.5 to 2.5 (means of 2 runs).",
        ),
        (
            BeforeAfter(metric="test error", before=(0.25,), after=(0.25,), removed=5),
            "Leaving out the 5 most harmful examples left test error at 25.0 % (one run).",
        ),
    ],
)
def test_the_result_of_cleansing_says_which_way_and_how_far(change: BeforeAfter, sentence: str) -> None:
    assert data_of([1.0], before_after=(change,)).result().replace("\N{NO-BREAK SPACE}", " ") == sentence


@pytest.mark.parametrize(("p_value", "doubted"), [(0.01, False), (0.3, True), (math.nan, True)])
def test_a_change_that_may_be_chance_is_called_so(p_value: float, doubted: bool) -> None:
    test = Comparison(test="paired t test", mean_difference=-1, low=-2, high=0, p_value=p_value, n=3)
    change = BeforeAfter(metric="test error", before=(0.2,) * 3, after=(0.1,) * 3, test=test)
    assert ("may be chance" in data_of([1.0], before_after=(change,)).result()) == doubted


def test_the_callers_own_headline_wins(full: ReportData) -> None:
    assert dataclasses.replace(full, headline="All is well.").result() == "All is well."


def test_warnings_of_the_certificate_come_first(full: ReportData) -> None:
    first, second = full.all_warnings
    assert first.startswith("Low trust")
    assert second == full.warnings[0]


@pytest.mark.parametrize(
    ("better", "after", "improved"),
    [("lower", 0.1, True), ("lower", 0.3, False), ("higher", 0.3, True), ("lower", 0.2, False)],
)
def test_improvement_follows_the_good_direction(better, after: float, improved: bool) -> None:
    assert BeforeAfter(metric="m", before=(0.2,), after=(after,), better=better).improved == improved
