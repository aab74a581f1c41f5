"""The runs of a sweep, and of earlier ones in the same folder, as one table, one figure and one page."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.foreign_files import read_arrays
from lightning_sgdinf.plain_text import printable, printable_logger
from lightning_sgdinf.report import Bars, Example, Merged, Panel, Sheet, log_merged, write_merged
from lightning_sgdinf.studies import merged_tables, summary
from lightning_sgdinf.studies.cache import flatten
from lightning_sgdinf.studies.merged_brief import brief
from lightning_sgdinf.studies.results import FILE, RunResults

FOLDER = "merged"
_HUGE = 1e100
logger = printable_logger(__name__)

Cells = Mapping[str, Sequence[RunResults]]
"""Runs by the name of their cell, repeats by seed."""


def merge(folders: Sequence[Path], into: Path | None = None, new_logger: Callable[[Path], Any] | None = None) -> Path:
    """Merge all runs below some folders.

    Args:
        folders: Of sweeps, of results.
        into: Folder of the result; ``merged`` in the last of the folders if ``None``.
        new_logger: Makes a Lightning logger, given a folder for its files: it gets the same, all tables as an artifact
            of W&B, and every curve with its band.

    Returns:
        The folder with ``table.csv`` (of removals; of jobs, if there are none), further tables, ``figure.png`` and
        ``page.html``.

    Raises:
        ConfigurationError: There is no folder, or nothing to merge in it.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: no such folder; give the folder of a sweep or of results")
    cells = collected(folders)
    rows = [row for folder in folders for row in summary.rows(folder)]
    if not cells and not rows:
        raise ConfigurationError(
            f"{', '.join(map(str, folders))}: no {summary.ROW} and no {FILE} below; give the folder of a sweep whose "
            "runs came to their end"
        )
    target = into or folders[-1] / FOLDER
    merged = merged_runs(cells, rows)
    write_merged(merged, target)
    if new_logger is not None:
        log_merged(merged, new_logger(target), numbers={}, curves=_bands(merged.panels), artifact="comparison")
    return target


def _bands(panels: Sequence[Panel]) -> dict[str, dict[int, float]]:
    """Return the mean of every curve over its runs, and both ends of its 95 % interval."""
    bands: dict[str, dict[int, float]] = {}
    for panel in panels:
        for method, curve in panel.curves.items():
            name = f"{panel.title}/{method}"
            bands[f"{name}/mean"] = {removal.count: removal.mean for removal in curve}
            for place, end in enumerate(("low", "high")):
                if any(removal.runs > 1 for removal in curve):
                    bands[f"{name}/{end}"] = {r.count: float(r.interval()[place]) for r in curve}
    return bands


def collected(folders: Sequence[Path]) -> Cells:
    """Return all runs below some folders, each once; several with the same cell and seed are joined."""
    by_key: dict[tuple[str, str, int], RunResults] = {}
    for file in dict.fromkeys(file.resolve() for folder in folders for file in sorted(folder.rglob(FILE))):
        try:
            run = RunResults.load(file)
        except ConfigurationError as error:
            logger.warning("skipped: %s", error)
            continue
        key = run.cell, json.dumps(run.settings, sort_keys=True), run.seed
        by_key[key] = by_key[key].joined(run) if key in by_key else run
    names = _names({(cell, settings) for cell, settings, _ in by_key})
    cells: dict[str, list[RunResults]] = defaultdict(list)
    for (cell, settings, _), run in sorted(by_key.items()):
        cells[names[cell, settings]].append(run)
    return cells


def merged_runs(cells: Cells, rows: Sequence[Mapping[str, Any]]) -> Merged:
    """Return everything that a page of these runs shows."""
    panels = tuple(_panels(cells))
    tables = [
        merged_tables.removals(cells),
        merged_tables.runs(rows),
        merged_tables.every_run(rows),
        merged_tables.choices(cells),
        merged_tables.methods(cells),
    ]
    bars = None if panels else _bars(rows)
    findings, sureness = brief(rows)
    seeds = {run.seed for runs in cells.values() for run in runs}
    numbers = [(len(cells), "cell"), (len(seeds), "seed"), (len(rows), "job")]
    counts = [f"{number} {name}{'s' if number > 1 else ''}" for number, name in numbers if number]
    few = any(panel.runs < 6 for panel in panels)
    note = "Fewer than six runs: a Wilcoxon test cannot reach p = 0.05, and intervals are wide."
    return Merged(
        title="Runs, merged",
        about=", ".join(counts),
        panels=panels,
        bars=bars,
        sheets=tuple(_sheets(cells)),
        tables=tuple(table for table in tables if table.rows),
        notes=(note,) if few else (),
        findings=findings,
        sureness=sureness,
    )


def _panels(cells: Cells) -> Iterator[Panel]:
    for cell, runs in cells.items():
        for mode in merged_tables.modes(runs):
            curves = merged_tables.curves(runs, mode)
            if curves:
                base = list(merged_tables.base(runs, mode).values())
                yield Panel(title=f"{cell}, {mode}", base=base, curves=curves)


def _bars(rows: Sequence[Mapping[str, Any]]) -> Bars | None:
    for metric in ("test_error_after", "after", "result"):
        values: dict[str, list[float]] = defaultdict(list)
        for name, row in merged_tables.named(rows):
            value: Any = row.get(metric)
            if _is_number(value):
                values[name].append(float(value))
        if values:
            measured = {str(row["measured"]) for row in rows if "measured" in row}
            what = f"{measured.pop()}, after" if metric == "after" and len(measured) == 1 else metric.replace("_", " ")
            return Bars(metric=what, values=values)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _HUGE


def _sheets(cells: Cells) -> Iterator[Sheet]:
    """Yield the pictures of the first run of each cell that kept any."""
    for cell, runs in cells.items():
        for run in runs:
            file = None if run.place is None else run.place / "found.npz"
            if run.harmful and file is not None and file.is_file() and (rows := _pictures(file, run.harmful)):
                yield Sheet(title=f"{cell}, seed {run.seed}", rows=rows)
                break


def _pictures(file: Path, harmful: Mapping[str, Collection[int]]) -> dict[str, list[tuple[int, Example]]]:
    try:
        kept = read_arrays(file)
        ids, labels, truths = (kept[name].tolist() for name in ("ids", "labels", "true_labels"))
        shown = {i for chosen in harmful.values() for i in chosen}
        examples = {
            number: Example(
                image=image.astype(np.float32) / 255,
                label=str(label),
                true_label=None if label == truth else str(truth),
            )
            for number, image, label, truth in zip(ids, kept["images"], labels, truths, strict=True)
            if number in shown
        }
    except (KeyError, TypeError, ValueError, NonFiniteError) as error:
        logger.warning("skipped: %s holds no pictures that can be shown (%s)", file, printable(str(error)))
        return {}
    # Of methods that were ranked elsewhere the pictures are elsewhere, too.
    return {
        method: [(i, examples[i]) for i in chosen]
        for method, chosen in harmful.items()
        if examples.keys() >= set(chosen)
    }


def _names(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return names of cells; those of one name that differ in settings are told apart by the settings."""
    by_cell: dict[str, list[str]] = defaultdict(list)
    for cell, settings in sorted(keys):
        by_cell[cell].append(settings)
    names = {}
    for cell, several in by_cell.items():
        leaves = [flatten(json.loads(settings)) for settings in several]
        differing = [
            key for key in dict.fromkeys(k for f in leaves for k in f) if len({str(f.get(key)) for f in leaves}) > 1
        ]
        for settings, values in zip(several, leaves, strict=True):
            more = ", ".join(f"{key}={values[key]}" for key in differing if key in values)
            names[cell, settings] = f"{cell}, {more}" if more else cell
    return names
