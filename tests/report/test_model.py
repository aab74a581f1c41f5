from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from lightning_sgdinf.certificate import Certificate, Trust
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import Comparison, detect
from lightning_sgdinf.report import BeforeAfter, Example, Explanation, ReportData
from lightning_sgdinf.report.brief import answer, chance, question, said_first, sureness
from lightning_sgdinf.report.model import method_label
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
    with pytest.raises(ConfigurationError, match="measured_on of at least 1, got 0"):
        BeforeAfter(metric="test error", before=(1.0,), after=(1.0,), measured_on=0)
    with pytest.raises(ConfigurationError, match="test error"):
        BeforeAfter(metric="test error", before=(), after=(1.0,))


def test_the_result_without_more_is_the_worst_example() -> None:
    assert answer(data_of([0.5, -0.25, 0.0])) == (
        "The most harmful training example is 1: leaving it out is predicted to lower loss by 0.25."
    )
    assert "is 0: leaving it out is predicted to raise loss by 0.5" in answer(data_of([0.5, -0.25], better="higher"))
    assert answer(data_of([0.5, 0.25])).startswith("No training example harms loss")


def test_the_result_of_detection_counts_what_was_found() -> None:
    harm = torch.tensor([5.0, 4.0, 3.0, 2.0])
    data = data_of([0.0] * 4, detections={"loss": detect(harm, [0, 3])})
    assert answer(data) == (
        "Of the 2 examples that loss ranks most harmful, 1 are known to be corrupt; chance would find 1.0."
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            BeforeAfter(metric="test error", before=(0.25,), after=(0.05,), removed=1200),
            "Leaving out the 1,200 most harmful of 1 training examples lowered test error from 25.0 % to 5.00 % (one "
            "run).",
        ),
        (
            BeforeAfter(metric="loss", before=(1.0, 2.0), after=(2.0, 3.0), percent=False),
            "Cleansing raised loss from 1.5 to 2.5 (means of 2 runs).",
        ),
        (
            BeforeAfter(metric="test error", before=(0.25,), after=(0.25,), removed=5),
            "Leaving out the 5 most harmful of 1 training examples left test error at 25.0 % (one run).",
        ),
        (
            BeforeAfter(metric="loss", before=(2.0,), after=(2.0,), removed=0, percent=False, measured_on=10),
            "Nothing was left out of the 1 training examples. Loss stays 2 on 10 test examples.",
        ),
        (
            BeforeAfter(metric="test error", before=(0.25,), after=(0.25,), removed=0, reason="none of 3 helps"),
            "Nothing was left out of the 1 training examples: none of 3 helps. Test error stays 25.0 %.",
        ),
        (
            BeforeAfter(
                metric="test error", before=(40 / 497,), after=(34 / 497,), measured_on=497, noun="test images"
            ),
            "Cleansing lowered test error from 8.05 % to 6.84 %: 6 of 497 test images fewer (one run).",
        ),
        (
            BeforeAfter(metric="test error", before=(0.1, 0.2), after=(0.2, 0.25), measured_on=10),
            "Cleansing raised test error from 15.0 % to 22.5 %: 0.75 of 10 test examples more (means of 2 runs).",
        ),
        (
            BeforeAfter(metric="loss", before=(1.0,), after=(2.0,), percent=False, measured_on=10),
            "Cleansing raised loss from 1 to 2 on 10 test examples (one run).",
        ),
    ],
)
def test_the_result_of_cleansing_says_which_way_and_how_far(change: BeforeAfter, sentence: str) -> None:
    assert answer(data_of([1.0], before_after=(change,))).replace("\N{NO-BREAK SPACE}", " ") == sentence


@pytest.mark.parametrize(("p_value", "doubted"), [(0.01, False), (0.3, True), (math.nan, True)])
def test_a_change_that_may_be_chance_is_called_so(p_value: float, doubted: bool) -> None:
    test = Comparison(test="paired t test", mean_difference=-1, low=-2, high=0, p_value=p_value, n=3)
    change = BeforeAfter(metric="test error", before=(0.2,) * 3, after=(0.1,) * 3, test=test)
    data = data_of([1.0], before_after=(change,))
    assert ("may be chance" in chance(data)) == doubted
    assert ("is beyond chance" in chance(data)) != doubted
    assert chance(data) in said_first(data)
    assert chance(dataclasses.replace(data, before_after=())) == ""


@pytest.mark.parametrize(
    ("removed", "runs", "says"),
    [(5, 1, "Whether the change of loss is beyond chance was not tested."), (0, 1, ""), (5, 2, "")],
)
def test_a_change_that_nobody_tested_is_called_so(removed: int, runs: int, says: str) -> None:
    change = BeforeAfter(metric="loss", before=(2.0,) * runs, after=(1.0,) * runs, removed=removed, percent=False)
    assert chance(data_of([1.0], before_after=(change,))) == says


def test_the_callers_own_headline_wins(full: ReportData) -> None:
    assert answer(dataclasses.replace(full, headline="All is well.")) == "All is well."


def test_the_question_says_of_what_and_by_what() -> None:
    provenance = {"estimator": "SgdInfluence(curvature_scale=1)", "query_values": [0.5], "validation_examples": 1200}
    scores = Scores(values=torch.tensor([[-0.25], [1.0]]), queries=("mean validation loss",), provenance=provenance)
    data = ReportData(title="", scores=scores)
    assert "2 training examples made the mean validation loss on 1,200 validation examples better" in question(data)
    assert "Answered by SgdInfluence:" in question(data)
    assert answer(data).endswith("lower mean validation loss by 0.25 (it is 0.5 on 1,200 validation examples).")
    ranked = Scores(values=scores.values, queries=("minus the training loss",), better=("order",))
    assert "ranked by minus the training loss" in question(ReportData(title="", scores=ranked))
    compared = ReportData(title="", scores=scores, compared={"loss": ranked})
    assert method_label(compared, "loss") == "loss (minus the training loss)"


def certified(meaning: str = "", **fields: object) -> ReportData:
    trust = Trust(
        **{
            **{"first_step": 0, "example_ids": (0, 1, 2), "predicted": (1.0,) * 3, "measured": (1.0,) * 3},
            **{"correlation": 0.95, "low": 0.93, "high": 0.97, "population": 3, "steps": 50, "query": "loss"},
            **fields,
        }  # type: ignore[arg-type]
    )
    scores = data_of([1.0, 2.0, 3.0]).scores
    certificate = Certificate(level="fast", trust=trust, meaning=meaning)
    return ReportData(title="", scores=dataclasses.replace(scores, certificate=certificate))


@pytest.mark.parametrize(
    ("data", "verdict", "reason"),
    [
        (certified(), "Predicted well.", "correlation 0.95 (1 is perfect, 95 % interval 0.93 to 0.97)"),
        (certified(correlation=0.7, low=0.7, high=0.7), "Predicted in part.", "correlation 0.70 (1 is perfect)."),
        (certified(correlation=-0.2, low=-0.2, high=-0.2), "Predicted badly.", "-0.20"),
        (certified(correlation=math.nan, low=math.nan, high=math.nan), "Not known well.", "nan"),
        (certified(low=0.5), "Not known well.", "between 0.50 and 0.97"),
        (certified(first_step=30), "Known for the end of the training only.", "out of the last 20 of 50 steps"),
        (certified(query="margin"), "Predicted well.", "This was measured for margin, not for loss."),
        (data_of([1.0]), "Not known.", "no example was really left out"),
        (certified(meaning="Shapley: a mean."), "An average, not this run.", "left out of this very training"),
        (data_of([1.0], better="order"), "A ranking, not a prediction.", "whom to look at first"),
    ],
)
def test_how_sure_it_is_follows_from_what_was_really_measured(data: ReportData, verdict: str, reason: str) -> None:
    told = sureness(data)
    assert told.verdict == verdict
    assert reason in told.reason


def test_what_a_value_means_stands_in_the_question() -> None:
    data = dataclasses.replace(certified(meaning="Shapley: a mean over coalitions."), asked={"estimator": "Shapley"})
    assert question(data).endswith("Answered by Shapley: a mean over coalitions.")


def test_scores_that_were_all_measured_are_sure() -> None:
    scores = dataclasses.replace(data_of([1.0, 2.0]).scores, verified=torch.tensor([True, True]))
    assert sureness(ReportData(title="", scores=scores)).verdict == "Measured."


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
