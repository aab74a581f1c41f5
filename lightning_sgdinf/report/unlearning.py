"""A page on unlearning: the table, quality against cost, answers before and after, and examples of the set.

Needs the ``report`` extra (matplotlib).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lightning_sgdinf.report import fragments
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.merged import Sheet
from lightning_sgdinf.report.style import INK, MUTED, SIZE, dress, new_figure, plain, series, to_png, to_svg
from lightning_sgdinf.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = "fresh"
"""The method that gives the floor."""


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A method's cost and distance from the exact model.

    Attributes:
        method: Its name.
        epochs: Mean cost; ``None`` if unknown.
        divergences: From the exact model, one per seed, in nats.
    """

    method: str
    epochs: float | None
    divergences: Sequence[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ForgettingPage:
    """Everything the page shows; what is empty is left out.

    Attributes:
        title: Head of the page.
        about: A sentence on what was forgotten.
        tables: The main one first.
        points: Of the figure of quality against cost.
        confusions: By method, counts of test examples by label and answer, ``[C, C]``.
        class_names: Of the classes.
        examples: Of the set, with their ids.
    """

    title: str
    about: str
    tables: tuple[Table, ...] = ()
    points: tuple[CostPoint, ...] = ()
    confusions: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    examples: tuple[tuple[int, Example], ...] = ()

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """The examples of the set, for dashboards."""
        return (Sheet(title=self.about, rows={"the set": self.examples}),) if self.examples else ()

    @cached_property
    def figure(self) -> tuple[str, bytes] | None:
        """Quality against cost, as SVG and PNG; ``None`` without points."""
        if not self.points:
            return None
        figure = quality_against_cost(self.points)
        return to_svg(figure), to_png(figure)

    @cached_property
    def page(self) -> str:
        """The whole page, one file that needs no network."""
        sections = [fragments.section(t.name, "Comparison", fragments.table(t)) for t in self.tables]
        if self.figure is not None:
            caption = "Means over seeds, bars one standard deviation; down and to the left is better. Logarithmic axes."
            drawn = fragments.chart(self.figure[0], caption, "Divergence against cost")
            sections.append(fragments.section("cost", "Quality against cost", drawn))
        if self.confusions:
            figure = to_svg(confusion_matrices(self.confusions, self.class_names))
            drawn = fragments.chart(figure, "Share of each class's test examples by the model's answer.", "Answers")
            sections.append(fragments.section("answers", "Answers by class", drawn))
        if self.examples:
            tiles = (fragments.tile(example, name=f"#{number}") for number, example in self.examples)
            sections.append(fragments.section("set", "Examples of the set", fragments.tiles(tiles)))
        head = f'<header><h1>{escape(self.title)}</h1><p class="about">{escape(self.about)}</p></header>'
        body = f"{head}\n<main>{''.join(sections)}</main>\n"
        return fragments.document(self.title, body, style=fragments.resource("page.css"))


def quality_against_cost(points: Sequence[CostPoint]) -> Figure:
    """Draw the mean divergence from the exact model against the mean cost, both logarithmic, a point per method."""
    drawn = [point for point in points if point.epochs and point.method != FLOOR]
    figure = new_figure(6.8, max(4.4, 0.6 + 0.2 * len(drawn)))  # room for every name
    axes = figure.subplots()
    for index, point in enumerate(drawn):
        mean, spread = float(np.mean(point.divergences)), float(np.std(point.divergences))
        low = min(spread, 0.9 * mean)
        look = series(index)
        axes.errorbar(
            [point.epochs or 0.0],
            [mean],
            [[low], [spread]],
            **look,
            markersize=6,
            linewidth=1,
            label=plain(point.method),
        )
    floors = [p for p in points if p.method == FLOOR]
    if floors:
        level = float(np.mean(floors[0].divergences))
        axes.axhline(level, color=MUTED, linewidth=1, linestyle="--", label="fresh training: the floor")
    axes.set_xscale("log")
    axes.set_yscale("log")
    dress(axes, x="cost in epochs", y="KL of the exact predictions, in nats")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right upper", fontsize=SIZE - 2, frameon=False, labelcolor=INK, handlelength=1.2
    )
    return figure


def confusion_matrices(confusions: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Draw the shares of each class's examples by answer, one matrix per model."""
    figure = new_figure(2.6 * len(confusions), 2.8)
    for axes, (method, counts) in zip(
        np.atleast_1d(figure.subplots(1, len(confusions))), confusions.items(), strict=True
    ):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(plain(method), fontsize=SIZE, color=INK)
        ticks = range(len(class_names))
        axes.set_xticks(ticks, [plain(name) for name in class_names], fontsize=SIZE - 3)
        axes.set_yticks(ticks, [plain(name) for name in class_names], fontsize=SIZE - 3)
        dress(axes, x="answer", y="label")
        axes.grid(visible=False)
    return figure
