"""Many runs on one page: test error against removals with error bands, what was found, tables.

Needs the ``report`` extra (matplotlib).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lightning_sgdinf.evaluation import Removal
from lightning_sgdinf.report import fragments
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.style import INK, MUTED, SIZE, dress, from_zero, new_figure, plain, series, to_png, to_svg
from lightning_sgdinf.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Mapping[int, float]]
"""By name, the test error of one run after so many examples were left out."""
DASHES = ("-", "--", ":")
"""Of the first seven methods, of the next seven, and so on: colours and markers come round again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Test error against removals for one cell and one way to train again.

    Attributes:
        title: What it is.
        base: Test error with nothing left out, one per run.
        curves: By method, what leaving out did, by increasing count.
    """

    title: str
    base: Sequence[float]
    curves: Mapping[str, Sequence[Removal]]

    @property
    def runs(self) -> int:
        """The largest number of runs."""
        return max([len(self.base), *(r.runs for curve in self.curves.values() for r in curve)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """The examples that each method finds most harmful.

    Attributes:
        title: Of which run.
        rows: By method, examples with their ids, the worst first.
    """

    title: str
    rows: Mapping[str, Sequence[tuple[int, Example]]]


class ResultPage(Protocol):
    """A page of results, and what is written and logged beside it: `Merged`, or a study's own."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables, the main one first."""
        ...

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """Return examples to look at."""
        ...

    @cached_property
    def figure(self) -> tuple[str, bytes] | None:
        """Return the figure as SVG and PNG, if there is one."""
        ...

    @cached_property
    def page(self) -> str:
        """Return the whole page, one file that needs no network."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Bars:
    """A number of every configuration of a sweep that has no removals.

    Attributes:
        metric: What the numbers are.
        values: By configuration, one per run.
    """

    metric: str
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """Everything a page of merged runs shows; what is empty is left out.

    Attributes:
        title: Head of the page.
        about: A sentence on what was merged.
        panels: The papers' figure.
        bars: In its place, where nothing was left out.
        sheets: Found examples.
        tables: The main one first.
        notes: What a reader has to know before believing a number.
        findings: What the runs found, in a few sentences.
        sureness: And how sure that is, likewise.
    """

    title: str
    about: str
    panels: tuple[Panel, ...] = ()
    bars: Bars | None = None
    sheets: tuple[Sheet, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    sureness: tuple[str, ...] = ()

    @cached_property
    def figure(self) -> tuple[str, bytes] | None:
        """The papers' figure, one panel per cell and way to train again, or the bars: SVG and PNG."""
        if not self.panels and self.bars is None:
            return None
        figure = removal_curves(self.panels) if self.bars is None or self.panels else dots(self.bars)
        return to_svg(figure), to_png(figure)

    @cached_property
    def page(self) -> str:
        """The whole page, one file that needs no network."""
        return _render(self)


def removal_curves(panels: Sequence[Panel]) -> Figure:
    """Draw mean test error in % against the number of examples left out (logarithmic), with 95 % intervals.

    Args:
        panels: Each gets axes of its own; a method looks the same in all of them.
    """
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    methods = list(dict.fromkeys(method for panel in panels for method in panel.curves))
    figure = new_figure(5.6 * columns, 3.4 * lines + 0.25 * math.ceil(len(methods) / 3))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=False):
        handles |= _panel(axes, panel, methods)
    labels = {name: handles[name] for name in [*methods, "nothing left out"] if name in handles}
    figure.legend(
        list(labels.values()),
        [plain(label) for label in labels],
        loc="outside upper left",
        ncols=3,
        fontsize=SIZE - 1,
        frameon=False,
        labelcolor=INK,
    )
    return figure


def _panel(axes: Axes, panel: Panel, methods: Sequence[str]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for name, curve in panel.curves.items():
        index = methods.index(name)
        look = {**series(index), "linestyle": DASHES[index // 7 % len(DASHES)]}
        counts = [removal.count for removal in curve]
        intervals = 100 * np.array([removal.interval() for removal in curve])
        (handles[name],) = axes.plot(counts, [100 * r.mean for r in curve], **look, markersize=4, linewidth=1.5)
        if any(removal.runs > 1 for removal in curve):
            axes.fill_between(counts, intervals[:, 0], intervals[:, 1], color=look["color"], alpha=0.1, linewidth=0)
    if len(panel.base):
        level = 100 * float(np.mean(panel.base))
        handles["nothing left out"] = axes.axhline(level, color=MUTED, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    counts = sorted({removal.count for curve in panel.curves.values() for removal in curve})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    means = [100 * m for m in (*panel.base, *(r.mean for curve in panel.curves.values() for r in curve))]
    margin = max(0.5 * (max(means) - min(means)), 0.02)  # bands of few runs would leave no room for the means
    axes.set_ylim(max(0.0, min(means) - margin), max(means) + margin)
    runs = f"{panel.runs} runs" if panel.runs > 1 else "1 run"
    axes.set_title(plain(f"{panel.title} ({runs})"), fontsize=SIZE, color=INK, loc="left")
    dress(axes, x="\n".join(["training examples left out", *_of_fewer(panel)]), y="test error in %")
    from_zero(axes)
    return handles


def _of_fewer(panel: Panel) -> Iterator[str]:
    """Name the methods that are means of fewer runs, with the error of those runs with nothing left out: other runs may
    be easier."""
    groups: dict[str, list[str]] = {}
    for name, curve in panel.curves.items():
        most = max(curve, key=lambda removal: removal.runs)
        if most.runs < panel.runs:
            base = f"{100 * float(np.mean(most.before)):.2f} with nothing left out"
            runs = f"{most.runs} runs" if most.runs > 1 else "1 run"
            groups.setdefault(f"{runs} ({base})", []).append(name)
    for runs, names in groups.items():
        yield from textwrap.wrap(f"{runs}: {', '.join(names)}", width=72)


def dots(bars: Bars) -> Figure:
    """Draw every run as a dot and the mean as a bar, one line per configuration."""
    figure = new_figure(6.4, 0.9 + 0.36 * len(bars.values))
    axes = figure.subplots()
    for place, values in enumerate(bars.values.values()):
        axes.plot(values, [place] * len(values), color=MUTED, marker="o", markersize=4, linestyle="none")
        axes.plot(np.mean(values), place, marker="|", color=series(1)["color"], markersize=14, markeredgewidth=2.2)
    axes.set_yticks(range(len(bars.values)), [plain(name) for name in bars.values])
    axes.set_ylim(len(bars.values) - 0.4, -0.6)  # half a line at either end, however many there are
    dress(axes, x=f"{bars.metric} (dots: runs, bar: their mean)", y="")
    return figure


def _render(merged: Merged) -> str:
    sections = []
    if merged.figure is not None:
        caption = (
            "Means over runs; bands are 95 % intervals of the mean (Student). Trained again without the examples that "
            "each method finds most harmful."
            if merged.panels
            else "Every run, and the mean of each configuration."
        )
        wide = fragments.chart(merged.figure[0], caption, "The runs, each and their means").replace(
            "<figure ", '<figure style="max-width:none" '
        )
        heading = merged.bars.metric if merged.bars is not None and not merged.panels else "test error"
        sections.append(fragments.section("figure", f"{heading[:1].upper()}{heading[1:]}", wide))
    for table in merged.tables:
        title = table.name.replace("-", " ").capitalize()
        sections.append(fragments.section(table.name, title, fragments.table(table)))
    for number, sheet in enumerate(merged.sheets):
        rows = "".join(_row(method, examples) for method, examples in sheet.rows.items())
        sections.append(fragments.section(f"found-{number}", f"Found most harmful: {sheet.title}", rows))
    asked = (
        ("Did training again without what was chosen help, and is that more than chance?",) if merged.findings else ()
    )
    said = {"Asked": asked, "Found": merged.findings, "How sure": merged.sureness}
    lines = "".join(f"<dt>{name}</dt><dd>{fragments.paragraphs(text)}</dd>" for name, text in said.items() if text)
    brief = f'<dl class="brief">{lines}</dl>' if lines else ""
    body = (
        f'<header><h1>{escape(merged.title)}</h1><p class="about">{escape(merged.about)}</p>{brief}'
        f"{fragments.aside(fragments.paragraphs(merged.notes))}</header>\n<main>{''.join(sections)}</main>\n"
    )
    return fragments.document(merged.title, body, style=fragments.resource("page.css"))


def _row(method: str, examples: Sequence[tuple[int, Example]]) -> str:
    tiles = (fragments.tile(example, name=f"#{number}") for number, example in examples)
    return f"<h3>{escape(method)}</h3>{fragments.tiles(tiles)}"
