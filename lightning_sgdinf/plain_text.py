"""Texts of others, made harmless for the places where they are shown."""

from __future__ import annotations

import re
from typing import Any

_FORMULA = re.compile(r"[=+@\t\r\n\uff1d\uff0b\uff20\uff0d-]")  # the last four are wide forms of the first
_SPACES = "\u00a0\u2009\u202f"
_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn what follows around


def printable(text: str) -> str:
    """Return a text for a terminal: control characters and halves of characters are spelled out, lines are kept."""
    kept = ("\n", *_SPACES)
    return "".join(c if (c.isprintable() and c not in _MARKS) or c in kept else _spelled_out(c) for c in text)


def encodable(text: str) -> str:
    """Return a text that can be written to a file: halves of characters become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file, such that no spreadsheet takes a text for a formula; numbers stay numbers."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _spelled_out(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
