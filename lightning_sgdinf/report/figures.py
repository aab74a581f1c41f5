"""The figures of a report. Each is a function from the data to a matplotlib figure; none touches pyplot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_sgdinf.ranking import Better, sign_sentence
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.model import BeforeAfter, ReportData, collect_contributions, method_label
from lightning_sgdinf.report.style import (
    HARM,
    HELP,
    INK,
    MUTED,
    SIZE,
    dress,
    from_zero,
    legend,
    new_figure,
    plain,
    series,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def score_axis(query: str, better: Better) -> str:
    """Return the label of an axis of scores, in two lines: what it is, and which sign harms."""
    name = query if better == "order" else f"change of {query} if the example is left out"
    return f"{name}\n({sign_sentence('it', better)})"


def score_distribution(data: ReportData) -> Figure:
    """Draw a histogram of all scores, known corrupt examples apart; logarithmic counts, because the tails matter."""
    figure = new_figure()
    axes = figure.subplots()
    values = data.scores.values[:, data.scores.query_index(data.query)].numpy()
    marked = np.zeros(len(values), bool)
    marked[list(data.known_corrupt)] = True
    edges = np.histogram_bin_edges(values, bins=min(60, max(10, round(math.sqrt(len(values))))))
    style: dict[str, Any] = {"bins": edges, "histtype": "stepfilled", "linewidth": 1.0}
    axes.hist(values[~marked], **style, facecolor="#cfd4d8", edgecolor=MUTED, label=f"others ({(~marked).sum():,})")
    if marked.any():
        label = f"known corrupt ({marked.sum():,})"
        axes.hist(values[marked], **style, facecolor=HARM + "66", edgecolor=HARM, hatch="///", label=label)
        legend(figure)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    if data.better == "higher":
        axes.invert_xaxis()  # harm is on the left of every picture
    dress(axes, x=score_axis(data.query_name, data.better), y="training examples (log scale)")
    return figure


def cleansing_curves(data: ReportData) -> Figure:
    """Draw mean test error against the number of examples left out, with 95 % intervals, one line per method."""
    figure = new_figure()
    axes = figure.subplots()
    scale = 100 if data.curves[0].percent else 1
    for index, curve in enumerate(data.curves):
        low, high = curve.interval()
        look = series(index)
        name = plain(method_label(data, curve.method))
        axes.plot(curve.counts, scale * curve.mean, **look, markersize=4, linewidth=1.6, label=name)
        if curve.runs > 1:
            axes.fill_between(curve.counts, scale * low, scale * high, color=look["color"], alpha=0.1, linewidth=0)
        if curve.chosen is not None:
            count, error = curve.chosen
            ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
            label = f"chosen: {count:,}"
            axes.plot([count], [scale * error], **ring, color=INK, markeredgewidth=1.4, label=label, zorder=5)
    starts = [curve.mean[0] for curve in data.curves if curve.counts[0] == 0]
    if starts:
        axes.axhline(scale * float(np.mean(starts)), color=MUTED, linewidth=1, linestyle="--", label="nothing left out")
    runs = max(curve.runs for curve in data.curves)
    band = f"\n(mean of {runs} runs, 95 % interval)" if runs > 1 else ""
    dress(
        axes,
        x="training examples left out",
        y=f"{data.curves[0].metric}{' in %' if data.curves[0].percent else ''}{band}",
    )
    from_zero(axes)
    legend(figure)
    return figure


def before_after(changes: tuple[BeforeAfter, ...]) -> Figure:
    """Draw every run before and after cleansing, joined by a line, and the means; one panel per metric."""
    figure = new_figure(max(5.2, 2.6 * len(changes)))
    for axes, change in zip(np.atleast_1d(figure.subplots(1, len(changes))), changes, strict=True):
        scale = 100 if change.percent else 1
        if len(change.before) == len(change.after):
            runs = scale * np.array([change.before, change.after])
            axes.plot([0, 1], runs, color=MUTED, linewidth=0.8, marker="o", markersize=3, alpha=0.8)
        colour = HELP if change.improved else HARM
        means = [scale * mean for mean in change.means]
        axes.plot([0, 1], means, color=colour, linewidth=2.4, marker="o", markersize=7, label="mean")
        for place, mean in enumerate(means):
            above = mean >= means[1 - place]
            axes.annotate(
                change.show(mean / scale),
                (place, mean),
                (0, 9 if above else -9),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=SIZE,
                color=colour,
                fontweight="bold",
                bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
            )
        axes.margins(y=0.18)
        axes.set_xlim(-0.55, 1.55)
        axes.set_xticks([0, 1], ["before", "after"])
        dress(axes, x="", y=f"{change.metric}{' in %' if change.percent else ''} ({change.better} is better)")
        axes.set_ylim(bottom=0)
    return figure


def detection_curve(data: ReportData) -> Figure:
    """Draw the share of the corrupt examples found against the share inspected, one line per method."""
    figure = new_figure()
    axes = figure.subplots()
    for index, (method, detection) in enumerate(data.detections.items()):
        inspected = 100 * np.arange(detection.total + 1) / detection.total
        colour = series(index)["color"]
        hits = 100 * detection.cumulative_hits / detection.corrupt
        axes.plot(inspected, hits, color=colour, linewidth=1.6, label=plain(method_label(data, method)))
    share = 100 * max(detection.corrupt / detection.total for detection in data.detections.values())
    axes.plot([0, share, 100], [0, 100, 100], color=INK, linewidth=0.8, linestyle=":", label="perfect")
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle="--", label="chance")
    dress(axes, x="training examples inspected in %, most harmful first", y="corrupt examples found in %")
    legend(figure)
    return figure


def precision_recall(data: ReportData) -> Figure:
    """Draw precision against recall of finding the corrupt examples, one line per method."""
    figure = new_figure()
    axes = figure.subplots()
    for index, (method, detection) in enumerate(data.detections.items()):
        label = plain(f"{method_label(data, method)}, AP {detection.average_precision:.2f}")
        colour = series(index)["color"]
        axes.plot(detection.recall[:-1], detection.precision[:-1], color=colour, linewidth=1.6, label=label)
    chance = max(detection.corrupt / detection.total for detection in data.detections.values())
    axes.axhline(chance, color=MUTED, linewidth=0.8, linestyle="--", label="chance")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)
    dress(axes, x="recall: share of the corrupt ones found", y="precision: share of those\ninspected that are corrupt")
    legend(figure)
    return figure


def epoch_contributions(data: ReportData) -> Figure:
    """Draw each epoch's mean contribution to the scores of the most harmful, the most helpful and all examples."""
    contributions = collect_contributions(data)
    assert contributions is not None  # the page asks only then
    figure = new_figure()
    axes = figure.subplots()
    epochs = np.arange(len(contributions))
    harmful = list(data.scores.most_harmful(data.shown, data.query).example_ids)
    helpful = list(data.scores.most_helpful(data.shown, data.query).example_ids)
    for ids, label, colour, marker in (
        (harmful, f"{len(harmful)} most harmful", HARM, "o"),
        (helpful, f"{len(helpful)} most helpful", HELP, "s"),
        (slice(None), "all", MUTED, "^"),
    ):
        mean = contributions[:, ids].mean(axis=1)
        axes.plot(epochs, mean, color=colour, marker=marker, markersize=4, linewidth=1.6, label=label)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.locator_params(axis="x", integer=True)
    if data.better == "higher":
        axes.invert_yaxis()  # harm is at the bottom of every picture
    name = f"mean contribution to the\nchange of {data.query_name}"
    dress(axes, x="training epoch", y=name)
    legend(figure)
    return figure


def predicted_against_measured(data: ReportData) -> Figure:
    """Draw predicted against measured change of the certificate's sampled examples, and the line of equality."""
    certificate = data.scores.certificate
    assert certificate is not None
    figure = new_figure()
    axes = figure.subplots()
    everything: list[float] = []
    for check, label, colour, marker in (
        (certificate.trust, "really left out", HARM, "o"),
        (certificate.gradient_check, "central difference", HELP, "+"),
    ):
        if check is not None:
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "none"}
            axes.plot(check.measured, check.predicted, **look, label=label)
            everything += [*check.measured, *check.predicted]
    span = [min(everything), max(everything)]
    axes.plot(span, span, color=MUTED, linewidth=0.8, linestyle="--", label="equal", zorder=1)
    axes.locator_params(axis="x", nbins=4)  # numbers of many digits, side by side
    dress(axes, x=f"measured change of {data.query_name}", y=f"predicted change of\n{data.query_name}")
    legend(figure)
    return figure


def contact_sheet(data: ReportData, end: Literal["harmful", "helpful"], columns: int = 8) -> Figure | None:
    """Draw the ranked examples with label, id and score, mislabelled ones outlined; ``None`` without pictures."""
    best = data.scores.most_harmful if end == "harmful" else data.scores.most_helpful
    ranking = best(data.shown, data.query)
    shown = [(row, data.examples[row.example_id]) for row in ranking if row.example_id in data.examples]
    shown = [(row, example) for row, example in shown if example.image is not None]
    if not shown:
        return None
    columns = min(columns, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(1.25 * columns, 1.75 * lines + 0.4)
    figure.suptitle(plain(sign_sentence(ranking.query, ranking.better, end)), fontsize=SIZE, color=INK)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, (row, example) in zip(grid, shown, strict=False):
        _picture(axes, example, corrupt=row.example_id in data.known_corrupt)
        label = row.label if row.label is not None else example.label
        truth = f", should be {example.true_label}" if example.mislabelled else ""
        colour = HARM if truth or row.example_id in data.known_corrupt else INK
        axes.set_title(plain(f"{label}{truth}"), fontsize=SIZE, color=colour)
        axes.set_xlabel(f"#{row.example_id}\n{row.score:+.2g}", fontsize=SIZE - 2, color=INK)
    return figure


def _picture(axes: Axes, example: Example, *, corrupt: bool) -> None:
    assert example.image is not None
    axes.imshow(np.asarray(example.image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(HARM if corrupt or example.mislabelled else "#cccccc")
        spine.set_linewidth(2.5 if corrupt or example.mislabelled else 0.5)


def all_figures(data: ReportData) -> dict[str, Figure]:
    """Draw every figure for which there are data; returns them by name."""
    figures = {"score-distribution": score_distribution(data)}
    if data.before_after:
        figures["before-after"] = before_after(data.before_after)
    if data.curves:
        figures["cleansing-curves"] = cleansing_curves(data)
    if data.detections:
        figures["corrupt-found"] = detection_curve(data)
        figures["precision-recall"] = precision_recall(data)
    if collect_contributions(data) is not None:
        figures["epoch-contributions"] = epoch_contributions(data)
    certificate = data.scores.certificate
    if certificate is not None and (certificate.trust is not None or certificate.gradient_check is not None):
        figures["predicted-measured"] = predicted_against_measured(data)
    return figures


def contact_sheets(data: ReportData) -> dict[str, Figure]:
    """Draw the contact sheets of both ends, if there are pictures; returns them by name."""
    sheets = {"most-harmful": contact_sheet(data, "harmful"), "most-helpful": contact_sheet(data, "helpful")}
    return {name: sheet for name, sheet in sheets.items() if sheet is not None}
