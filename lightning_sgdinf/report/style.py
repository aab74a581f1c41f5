"""The look of all figures of a report, without touching matplotlib's global settings."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from lightning_sgdinf.extras import require
from lightning_sgdinf.plain_text import printable

if TYPE_CHECKING:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    matplotlib = require("matplotlib", extra="report")
    Figure = require("matplotlib.figure", extra="report").Figure

# Okabe and Ito's colours, told apart with any colour vision; harm and help also differ in lightness.
HARM, HELP, INK, MUTED, RULE = "#d55e00", "#0072b2", "#222222", "#8c8c8c", "#dddddd"
SERIES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIZE = 10


def new_figure(width: float = 5.2, height: float = 3.2) -> Figure:
    """Return an empty figure, in inches, drawn without pyplot."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def series(index: int) -> dict[str, Any]:
    """Return the colour and marker of the ``index``-th series: a pair of its own as long as there are any."""
    again = index // len(SERIES)
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[(index + again) % len(MARKERS)]}


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is: a dollar sign would begin a formula, and no picture can hold a
    control character or half of a character."""
    return printable(text).replace("$", r"\$")


def dress(axes: Axes, *, x: str, y: str) -> None:
    """Name the axes and remove what carries no information."""
    axes.set_xlabel(plain(x), fontsize=SIZE, color=INK)
    axes.set_ylabel(plain(y), fontsize=SIZE, color=INK)
    axes.tick_params(labelsize=SIZE - 1, colors=INK, length=3, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def from_zero(axes: Axes) -> None:
    """Let a vertical axis of values that cannot be negative begin at zero; where that would flatten them, mark it."""
    low, high = axes.get_ylim()
    if low < high / 2:
        axes.set_ylim(bottom=0)
    else:
        cut: dict[str, Any] = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 9, "linestyle": "none", "color": INK}
        axes.plot([0, 0], [0.03, 0.06], transform=axes.transAxes, clip_on=False, label="_cut", **cut)
        axes.set_ylabel(f"{axes.get_ylabel()}\n(axis does not begin at 0)", fontsize=SIZE - 1, color=INK)
        axes.set_ylim(low, high)


def legend(figure: Figure) -> None:
    """Draw a legend above the axes, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    look: dict[str, Any] = {
        "fontsize": SIZE - 1,
        "frameon": False,
        "labelcolor": INK,
        "handlelength": 1.6,
        "columnspacing": 1.2,
    }
    figure.legend(
        handles, labels, loc="outside upper left", ncols=2 if len(labels) == 4 else min(3, len(labels)), **look
    )


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG, the same bytes for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lightning-sgdinf", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """Return the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()
