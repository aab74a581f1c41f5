"""Training again for one count after another: a count that diverges is skipped, and the others are tried."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from lightning_sgdinf.errors import NonFiniteError

Measured = TypeVar("Measured")


class SkippedCountWarning(UserWarning):
    """Training without so many examples diverged."""


def unless_diverged(count: int, measure: Callable[[], Measured]) -> Measured | None:
    """Return what is measured after training again; ``None``, with a warning, if that diverged.

    Args:
        count: Examples that are changed; with 0 there is nothing left to compare with.
        measure: Trains and measures.

    Raises:
        NonFiniteError: Training with nothing changed diverged.
    """
    try:
        return measure()
    except NonFiniteError as error:
        if count == 0:
            raise
        warnings.warn(f"{count} examples changed: skipped, other counts are tried. {error}", SkippedCountWarning, 3)
        return None
