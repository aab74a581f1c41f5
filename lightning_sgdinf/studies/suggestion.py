"""The nearest known name to one that is unknown, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence on an unknown name: ``"; did you mean 'lr'?"``, or a full stop if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
