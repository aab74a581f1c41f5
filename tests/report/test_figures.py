from __future__ import annotations

import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import matplotlib
import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_sgdinf.evaluation import CleansingCurve
from lightning_sgdinf.report import BeforeAfter, Example, ReportData, figures
from lightning_sgdinf.report.style import HARM, HELP, dress, new_figure, plain, to_png, to_svg
from lightning_sgdinf.scores import Scores


def test_every_figure_renders_as_picture_and_as_drawing(full: ReportData) -> None:
    drawn = {**figures.all_figures(full), **figures.contact_sheets(full)}
    assert set(drawn) == {
        "score-distribution",
        "before-after",
        "cleansing-curves",
        "corrupt-found",
        "precision-recall",
        "epoch-contributions",
        "predicted-measured",
        "most-harmful",
        "most-helpful",
    }
    for name, figure in drawn.items():
        pixels = np.asarray(Image.open(io.BytesIO(to_png(figure, dots_per_inch=50))).convert("L"))
        assert pixels.min() < 128 < pixels.max(), f"{name} is empty"
        assert ElementTree.fromstring(to_svg(figure)).tag.endswith("svg")


def test_only_what_there_is_is_drawn(bare: ReportData) -> None:
    assert set(figures.all_figures(bare)) == {"score-distribution"}
    assert figures.contact_sheets(bare) == {}


def labels(figure) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_axes_of_scores_spell_the_sign(full: ReportData) -> None:
    ((x, _),) = labels(figures.score_distribution(full))
    assert x == (
        "change of validation loss if the example is left out\n"
        "(negative = harmful: leaving it out is predicted to lower it)"
    )
    ((x, _),) = labels(figures.score_distribution(dataclasses.replace(full, query="margin")))
    assert "change of margin" in x
    for query, inverted in (("validation loss", False), ("margin", True)):  # harm is on the left
        data = dataclasses.replace(full, query=query)
        assert figures.score_distribution(data).axes[0].xaxis_inverted() == inverted
        assert figures.epoch_contributions(data).axes[0].yaxis_inverted() == inverted
    assert "positive = harmful" in x
    sheet = figures.contact_sheet(full, "helpful")
    assert sheet is not None
    assert sheet.get_suptitle() == "positive = helpful: leaving it out is predicted to raise validation loss"


def test_the_distribution_counts_every_example_once(full: ReportData) -> None:
    (axes,) = figures.score_distribution(full).axes
    texts = [text.get_text() for legend in axes.figure.legends for text in legend.get_texts()]
    assert texts == ["others (35)", "known corrupt (5)"]


def test_curves_show_means_in_percent_and_the_start(full: ReportData) -> None:
    (axes,) = figures.cleansing_curves(full).axes
    first = axes.lines[0]
    assert first.get_xdata().tolist() == [0, 2, 4]
    assert first.get_ydata() == pytest.approx([25, 11, 17.5])
    assert axes.lines[-1].get_ydata() == pytest.approx([25, 25])
    assert "test error in %" in axes.get_ylabel()
    assert axes.get_ylim()[0] == 0


def test_an_axis_that_does_not_begin_at_zero_says_so(bare: ReportData) -> None:
    for errors, marked in (([0.21, 0.2], True), ([0.2, 0.02], False)):
        curve = CleansingCurve(method="a", counts=(0, 2), errors=errors)
        (axes,) = figures.cleansing_curves(dataclasses.replace(bare, curves=(curve,))).axes
        assert (axes.get_ylim()[0] > 0) == marked
        assert ("axis does not begin at 0" in axes.get_ylabel()) == marked
        cuts = [line for line in axes.lines if line.get_label() == "_cut"]
        assert bool(cuts) == marked
    (axes,) = figures.before_after((BeforeAfter(metric="error", before=(0.5,), after=(0.49,)),)).axes
    assert axes.get_ylim()[0] == 0


def test_the_number_that_was_chosen_is_marked(bare: ReportData) -> None:
    for chosen in ((3, 0.15), (0, 0.2)):
        curve = CleansingCurve(method="a", counts=(0, 2, 4), errors=[0.2, 0.1, 0.3], chosen=chosen)
        data = dataclasses.replace(bare, curves=(curve, dataclasses.replace(curve, method="b", chosen=None)))
        (axes,) = figures.cleansing_curves(data).axes
        (ring,) = [line for line in axes.lines if "chosen" in str(line.get_label())]
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (chosen[0], pytest.approx(100 * chosen[1]))
        assert ring.get_label() == f"chosen: {chosen[0]}"


def test_curves_of_another_metric_are_not_in_percent(bare: ReportData) -> None:
    curve = CleansingCurve(method="a", counts=(1, 2), errors=[3.0, 2.0], metric="loss", percent=False)
    (axes,) = figures.cleansing_curves(dataclasses.replace(bare, curves=(curve,))).axes
    assert axes.lines[0].get_ydata().tolist() == [3.0, 2.0]
    assert axes.get_ylabel().startswith("loss\n")


@pytest.mark.parametrize(("after", "colour"), [(0.1, HELP), (0.9, HARM)])
def test_before_and_after_is_coloured_by_whether_it_helped(after: float, colour: str) -> None:
    (axes,) = figures.before_after((BeforeAfter(metric="error", before=(0.5, 0.5), after=(after, after)),)).axes
    assert axes.lines[-1].get_color() == colour
    assert axes.lines[-1].get_ydata() == pytest.approx([50, 100 * after])


def test_groups_of_different_size_are_compared_by_their_means_alone() -> None:
    (axes,) = figures.before_after((BeforeAfter(metric="error", before=(0.5, 0.7), after=(0.1,)),)).axes
    assert len(axes.lines) == 1


def test_epochs_add_up_to_the_mean_scores(full: ReportData) -> None:
    (axes,) = figures.epoch_contributions(full).axes
    harmful = list(full.scores.most_harmful(full.shown).scores)
    assert axes.lines[0].get_ydata().sum() == pytest.approx(np.mean(harmful))
    assert axes.lines[2].get_ydata().sum() == pytest.approx(full.scores.values[:, 0].mean().item())


def test_mislabelled_examples_are_outlined_and_named(full: ReportData, hostile: str) -> None:
    sheet = figures.contact_sheet(full, "harmful")
    assert sheet is not None
    outlined = [axes for axes in sheet.axes if axes.spines["left"].get_linewidth() > 1]
    shown = [i for i in full.scores.most_harmful(full.shown).example_ids if i in full.examples]
    shown = [i for i in shown if full.examples[i].image is not None]
    assert len(outlined) == len([i for i in shown if i in full.known_corrupt]) > 0
    assert outlined[0].get_title().endswith(f"should be {hostile}")


def test_a_sheet_has_no_more_columns_than_pictures() -> None:
    scores = Scores(values=torch.zeros(3, 1), queries=("q",))
    data = ReportData(title="", scores=scores, examples={1: Example(image=np.ones((2, 2)))})
    sheet = figures.contact_sheet(data, "harmful")
    assert sheet is not None
    assert len(sheet.axes) == 1


def test_scores_that_are_all_equal_can_be_drawn() -> None:
    data = ReportData(title="", scores=Scores(values=torch.zeros(3, 1), queries=("q",)))
    assert to_png(figures.score_distribution(data), dots_per_inch=30)


@pytest.mark.parametrize("text", ["$5 and $6", "$\\frac{", "\\alpha", "\\$x$", "a_b^c", "100 %"])
def test_text_is_never_read_as_a_formula(text: str) -> None:
    assert not matplotlib.cbook.is_math_text(plain(text))  # what matplotlib asks before it draws
    assert plain(text).replace(r"\$", "$") == text
    figure = new_figure(2, 2)
    dress(figure.subplots(), x=text, y="")
    assert to_svg(figure)


def test_drawing_twice_gives_the_same_bytes(bare: ReportData) -> None:
    first, second = (to_svg(figures.score_distribution(bare)) for _ in range(2))
    assert first == second


def test_matplotlibs_settings_stay_as_they_were(bare: ReportData) -> None:
    before = dict(matplotlib.rcParams)
    to_svg(figures.score_distribution(bare))
    assert dict(matplotlib.rcParams) == before


def test_no_figure_is_left_open_in_pyplot(full: ReportData) -> None:
    from matplotlib import pyplot

    to_png(figures.cleansing_curves(full), dots_per_inch=30)
    assert pyplot.get_fignums() == []
