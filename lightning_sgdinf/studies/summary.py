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
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.foreign_files import read_document
from lightning_sgdinf.plain_text import csv_cell, encodable, printable_logger

ROW = "summary.json"
TABLE = "summary.csv"

logger = printable_logger(__name__)

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
    writer = csv.writer(text)
    writer.writerow(map(csv_cell, columns))
    writer.writerows([csv_cell(row.get(name)) for name in columns] for row in jobs)
    replace_bytes(target, text.getvalue().encode("utf-8", "replace"))
    return target


def rows(sweep: Path) -> list[dict[str, Cell]]:
    """Return the rows of all jobs below a folder, in the order of their folders (numbers as numbers)."""
    files = sorted(sweep.rglob(ROW), key=lambda path: _natural(path.parent.relative_to(sweep)))
    jobs: list[dict[str, Cell]] = []
    for path in files:
        try:
            row = read_document(path, dict)
            if odd := [value for value in row.values() if not _is_cell(value)]:
                raise ConfigurationError(f"{path}: expected numbers and texts, got {odd[0]!r:.80}")
        except ConfigurationError as error:  # one job's row shall not keep all others from being seen
            logger.warning("skipped: %s", error)
            continue
        jobs.append({"job": encodable(path.parent.relative_to(sweep).as_posix()), **row})
    return jobs


def _is_cell(value: object) -> bool:
    return value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1 << 63)


def _natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in path.parts)
