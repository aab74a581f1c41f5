"""Tables on the console, by rich, which comes with the extra ``cli``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_sgdinf.extras import require
from lightning_sgdinf.plain_text import printable

if TYPE_CHECKING:
    from rich.console import Console as Console
    from rich.markup import escape
    from rich.table import Table as Table
else:
    Console = require("rich.console", extra="cli").Console
    Table = require("rich.table", extra="cli").Table
    escape = require("rich.markup", extra="cli").escape


def plain(text: object) -> str:
    """Return a text of others such that it steers neither rich nor the terminal: a class may be called ``[/]``."""
    return escape(printable(str(text)))
