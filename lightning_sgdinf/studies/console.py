"""Tables on the console, by rich, which comes with the extra ``cli``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sgdinf.extras import require
from lightning_sgdinf.plain_text import printable

if TYPE_CHECKING:
    from rich.console import Console as Console
    from rich.markup import escape
    from rich.table import Table as Table

    from lightning_sgdinf.report import Table as ResultTable
else:
    Console = require("rich.console", extra="cli").Console
    Table = require("rich.table", extra="cli").Table
    escape = require("rich.markup", extra="cli").escape


def plain(text: object) -> str:
    """Return a text of others such that it steers neither rich nor the terminal: a class may be called ``[/]``."""
    return escape(printable(str(text)))


def print_tables(contents: Sequence[ResultTable], page: Path) -> None:
    """Print the tables of a study's page, what was refused below each, and the path of the page."""
    console = Console(highlight=False)
    for content in contents:
        table = Table(title=plain(content.name), title_justify="left")
        columns = [place for place, column in enumerate(content.columns) if column not in ("runs", "refused")]
        for place in columns:
            table.add_column(
                plain(content.columns[place]), justify="left" if place == 0 else "right", no_wrap=place == 0
            )
        for row in content.rows:
            table.add_row(*("" if row[place] is None else plain(row[place]) for place in columns))
        console.print(table)
        named = content.columns.index("treatment") + 1 if "treatment" in content.columns else 1
        for row in content.rows:
            if row[-1]:
                who = " ".join(plain(cell) for cell in row[:named])
                console.print(f"[dim]{who} refused, {plain(row[-1])}[/]")
    console.print(f"[bold]{plain(page)}[/]", soft_wrap=True)
