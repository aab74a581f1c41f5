"""Pieces of the page: figures, tables, tiles. Everything that comes from data is escaped here."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Iterable, Mapping
from html import escape

from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.images import data_address, png
from lightning_sgdinf.report.tables import Cell, Table

MINUS = "\N{MINUS SIGN}"

_LONGEST_TEXT = 1000
_MOST_CELLS = 16


def document(title: str, body: str, *, style: str, script: str = "") -> str:
    """Return a whole page that needs no other file.

    Its policy: it may run the one script that is given, and show pictures and sounds that it holds itself.
    """
    scripts = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = (
        f"default-src 'none'; script-src {scripts}; img-src data: blob:; media-src data: blob:; font-src data:; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>{body}</body></html>\n"
    )


def resource(name: str) -> str:
    """Return a file of this package, as text."""
    return importlib.resources.files("lightning_sgdinf.report").joinpath(name).read_text(encoding="utf-8")


def aside(content: str) -> str:
    """Return what must be read first, in a box of its own, if there is anything."""
    return f'<aside class="warning" role="note">{content}</aside>' if content else ""


def number(value: float, digits: int = 3) -> str:
    """Format a number as a person writes it, with a true minus sign."""
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:.{places}f}".replace("-", MINUS)
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def signed(value: float) -> str:
    """Format a change: a number that shows its sign even if it is a plus."""
    return ("+" if value > 0 else "") + number(value)


def plain_number(value: float) -> str:
    """Format a number of a table: whole ones in full, others with four digits."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    return "undefined" if math.isnan(value) else number(value, 4)


def chart(svg: str, caption: str, alternative: str) -> str:
    """Return a figure with its caption, as a picture inside the page."""
    source = data_address(svg.encode(), "image/svg+xml")
    return (
        f'<figure class="chart"><img src="{source}" alt="{escape(alternative)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(content: Table) -> str:
    """Return a table with its caption; numbers to the right."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in content.columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in content.rows)
    return (
        f'<div class="block"><p class="caption">{escape(content.caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {escape(content.name)}">'
        f'<table aria-label="{escape(content.name)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _cell(value: Cell) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="n">{plain_number(value)}</td>'


def folded(summary: str, content: str) -> str:
    """Return content behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def pairs(items: Mapping[str, str]) -> str:
    """Return names and values in two columns."""
    return (
        '<dl class="pairs">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"
    )


def fact(value: str, meaning: str) -> str:
    """Return one number worth a glance."""
    return f'<div class="fact"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'


def paragraphs(sentences: Iterable[str]) -> str:
    """Return one paragraph per sentence."""
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def tile(
    example: Example | None,
    *,
    name: str,
    label: str = "",
    note: str = "",
    corrupt: bool = False,
    training_id: int | None = None,
) -> str:
    """Return one example: its looks, label, true label, name and a note; outlined if it is corrupt.

    Where its id as a training example is given, the page's script makes it open that.
    """
    label = label or (example.label if example is not None else "")
    wrong = corrupt or (example is not None and example.mislabelled)
    truth = ""
    if example is not None and example.mislabelled:
        truth = f'<span class="truth">should be {escape(str(example.true_label))}</span>'
    elif corrupt:
        truth = '<span class="truth">corrupt</span>'
    opens = "" if training_id is None else f' data-example="{training_id}"'
    return (
        f'<figure class="tile{" wrong" if wrong else ""}"{opens}>{_face(example, name)}'
        f'<figcaption><span class="label">{escape(label)}</span>{truth}'
        f'<span class="name">{escape(name)}</span><span class="note">{escape(note)}</span></figcaption></figure>'
    )


def _face(example: Example | None, name: str) -> str:
    if example is None:
        return ""
    if example.image is None:
        return _words(example)
    source = data_address(png(example), "image/png")
    crisp = " crisp" if max(example.image.shape[:2]) <= 64 else ""  # type: ignore[union-attr]
    return f'<img class="face{crisp}" src="{source}" alt="{escape(f"{name}, labelled {example.label}")}">'


def _words(example: Example) -> str:
    if example.html is not None:
        return f'<div class="face words html">{example.html.html}</div>'
    if example.text:
        return f'<blockquote class="face words">{escape(shortened(example.text, _LONGEST_TEXT))}</blockquote>'
    if not example.row:
        return ""
    cells = ((k, v if isinstance(v, str) else plain_number(v)) for k, v in list(example.row.items())[:_MOST_CELLS])
    return f'<div class="face words">{pairs(dict(cells))}</div>'


def shortened(text: str, length: int | None) -> str:
    """Return the text, or its beginning with an ellipsis, ``length`` characters in all."""
    return text if length is None or len(text) <= length else text[: length - 1] + "…"


def tiles(content: Iterable[str]) -> str:
    """Return a sheet of tiles."""
    return f'<div class="tiles">{"".join(content)}</div>'


def section(name: str, heading: str, *content: str) -> str:
    """Return a section of the page that links can point at."""
    return f'<section id="{escape(name)}"><h2>{escape(heading)}</h2>{"".join(content)}</section>'
