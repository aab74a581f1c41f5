"""Estimated against measured changes, one panel per method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_sgdinf.evaluation import kendall_tau
from lightning_sgdinf.report.style import INK, MUTED, SIZE, dress, new_figure, series, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scatter(true: np.ndarray, estimates: Mapping[str, np.ndarray]) -> Figure:
    """Draw a point per training example; on the dashed line estimate and measurement agree.

    Args:
        true: Measured change of the query without each example, ``[N]``.
        estimates: Estimated ones by method, ``[N]`` each, in the same units.
    """
    figure = new_figure(3.4 * len(estimates), 3.3)
    panels = np.atleast_1d(figure.subplots(1, len(estimates), squeeze=False)[0])
    for index, (axes, (name, values)) in enumerate(zip(panels, estimates.items(), strict=True)):
        low, high = min(true.min(), values.min()), max(true.max(), values.max())
        margin = 0.05 * (high - low)
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color=MUTED, linewidth=0.8, linestyle="--")
        axes.scatter(true, values, s=12, color=series(index)["color"], alpha=0.6, linewidths=0)
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_aspect("equal")
        axes.set_title(f"{name}\ntau = {kendall_tau(values, true):.2f}", fontsize=SIZE, color=INK)
        axes.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both")
        dress(axes, x="measured change", y="estimated change" if index == 0 else "")
    return figure


def save_scatter(true: np.ndarray, estimates: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the figure as PNG."""
    path.write_bytes(to_png(scatter(true, estimates)))
