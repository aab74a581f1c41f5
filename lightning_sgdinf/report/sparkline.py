"""The epochs' contributions to one score, as a picture or a word small enough for the cell of a table."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require

WIDTH, HEIGHT = 120, 28
"""Of a sparkline, in pixels."""
HARMFUL, HELPFUL, BASE = (213, 94, 0), (0, 114, 178), (140, 140, 140)  # the report's colours, as a picture wants them
_STEPS = "▁▂▃▄▅▆▇█"


def harm_per_epoch(contributions: ArrayLike, better: str) -> np.ndarray:
    """Return contributions with the sign of harm, float64 ``[E]``: positive harms, whichever way the query points.

    Raises:
        ConfigurationError: They are not one row.
    """
    values = np.asarray(contributions, np.float64)
    if values.ndim != 1 or not values.size:
        raise ConfigurationError(f"contributions: expected shape [E], at least one epoch, got {list(values.shape)}")
    return values if better == "higher" else -values


def sparkline_png(harm: Sequence[float] | np.ndarray) -> bytes:
    """Draw one bar per epoch, down and orange where it harmed, up and blue where it helped; the tallest fills its half.

    With more epochs than there is room for, neighbours are summed, so that nothing is left out.

    Args:
        harm: From `harm_per_epoch`.

    Returns:
        A PNG of `WIDTH` by `HEIGHT` pixels on a transparent ground.
    """
    values = np.asarray(harm, np.float64)
    if len(values) > WIDTH // 3:
        values = np.add.reduceat(values, np.unique(np.linspace(0, len(values), WIDTH // 3, endpoint=False).astype(int)))
    image = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    middle = HEIGHT // 2
    image[middle] = (*BASE, 255)
    largest = np.abs(values).max()
    edges = np.linspace(0, WIDTH, len(values) + 1).astype(int)
    for left, right, value in zip(edges[:-1], edges[1:], values / largest if largest else values, strict=True):
        length = round(abs(value) * (middle - 1))
        rows = slice(middle + 1, middle + 1 + length) if value > 0 else slice(middle - length, middle)
        image[rows, left : max(right - 1, left + 1)] = (*(HARMFUL if value > 0 else HELPFUL), 255)
    buffer = io.BytesIO()
    require("PIL.Image", extra="report").fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sparkline_text(harm: Sequence[float] | np.ndarray) -> str:
    """Write the same in eight heights of block characters, from the greatest harm to the greatest help."""
    values = -np.asarray(harm, np.float64)
    low, high = values.min(), values.max()
    heights = np.zeros(len(values)) if low == high else (values - low) / (high - low)
    return "".join(_STEPS[round(height * (len(_STEPS) - 1))] for height in heights)
