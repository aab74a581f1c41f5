"""Texts of others, made harmless for the places where they are shown."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

_FORMULA = re.compile(r"[=+@\t\r\n\uff1d\uff0b\uff20\uff0d-]")  # the last four are wide forms of the first
_MARKUP = re.compile(r"[\\`*{}\[\]#|~]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is none
_SPACES = "\u00a0\u2009\u202f"
_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn what follows around


def printable(text: str) -> str:
    """Return a text for a terminal: control characters and halves of characters are spelled out, lines are kept."""
    kept = ("\n", *_SPACES)
    return "".join(c if (c.isprintable() and c not in _MARKS) or c in kept else _spelled_out(c) for c in text)


def printable_logger(name: str) -> logging.Logger:
    """Return the logger of a module, whose messages hold texts of others and steer no terminal."""
    logger = logging.getLogger(name)
    logger.addFilter(_make_printable)
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def markdown(text: object) -> str:
    """Return a text of others for Markdown: it makes no markup, no HTML, no cell and no line of its own."""
    safe = html.escape(printable(" ".join(str(text).split())), quote=False)
    return _MARKUP.sub(r"\\\g<0>", safe)


def markdown_table(rows: Iterable[Sequence[object]], *, emphasised: Container[object] = ()) -> str:
    """Return a table in Markdown; text in it stays text.

    Args:
        rows: The names of the columns first; ``None`` is an empty cell.
        emphasised: First cells of the rows to write in italics.
    """

    def cells(row: Sequence[object]) -> list[str]:
        texts = ["" if cell is None else markdown(cell) for cell in row]
        return [f"*{text}*" if text and row[0] in emphasised else text for text in texts]

    head, *body = map(cells, rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
