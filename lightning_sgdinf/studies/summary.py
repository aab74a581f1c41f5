"""One row per job, one table per sweep.

Every job writes its own row as JSON and then assembles the table anew from all rows there are, so jobs that run
side by side need no lock: whichever ends last writes the whole table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from lightning_sgdinf.atomic_write import replace_bytes

ROW = "summary.json"
TABLE = "summary.csv"

Cell = str | int | float | bool | None


def write_row(folder: Path, row: Mapping[str, Cell]) -> None:
    """Write a job's row into its folder."""
    replace_bytes(folder / ROW, json.dumps(dict(row), indent=1).encode())


def assemble(sweep: Path) -> Path:
    """Write the rows of all jobs below a folder as one table.

    Args:
        sweep: Folder of the sweep; its jobs' folders lie somewhere below.

    Returns:
        Path of the CSV file: a column per key of any row, jobs ordered by folder (numbers as numbers).
    """
    jobs = rows(sweep)
    columns = list(dict.fromkeys(key for row in jobs for key in row))
    target = sweep / TABLE
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(jobs)
    replace_bytes(target, text.getvalue().encode())
    return target


def rows(sweep: Path) -> list[dict[str, Cell]]:
    """Return the rows of all jobs below a folder, in the order of their folders (numbers as numbers)."""
    files = sorted(sweep.rglob(ROW), key=lambda path: _natural(path.parent.relative_to(sweep)))
    return [{"job": path.parent.relative_to(sweep).as_posix(), **json.loads(path.read_text())} for path in files]


def _natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in path.parts)
