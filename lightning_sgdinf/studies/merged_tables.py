"""The tables of merged runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_sgdinf.cleansing import measure_reliability
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.evaluation import Removal, compare_removals, paired_t_test, wilcoxon_test
from lightning_sgdinf.report import Cell, Table
from lightning_sgdinf.studies.results import RunResults

Cells = Mapping[str, Sequence[RunResults]]
NOT_A_METRIC = {"seed", "job"}


def modes(runs: Sequence[RunResults]) -> list[str]:
    """Return the ways in which any run trained again."""
    return list(dict.fromkeys(point.mode for run in runs for point in run.points))


def base(runs: Sequence[RunResults], mode: str) -> dict[int, float]:
    """Return the test error with nothing left out, by seed."""
    return {
        run.seed: point.measured.test_error
        for run in runs
        for point in run.points
        if point.mode == mode and point.count == 0
    }


def curves(runs: Sequence[RunResults], mode: str) -> dict[str, list[Removal]]:
    """Return the test error against removals by method, with tests."""
    after: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        for point in run.points:
            if point.mode == mode and point.count:
                after[point.method][point.count][run.seed] = point.measured.test_error
    before = base(runs, mode)
    return {method: curve for method in after if (curve := compare_removals(before, after[method]))}


def removals(cells: Cells) -> Table:
    """Return the main table: a row per cell, way to train again, method and count."""
    rows: list[tuple[Cell, ...]] = []
    for cell, runs in cells.items():
        for mode in modes(runs):
            none = list(base(runs, mode).values())
            if none:
                rows.append((cell, mode, "nothing left out", 0, len(none), *_mean_std(none), *[None] * 8))
            held_out = _held_out(runs, mode)
            for method, curve in curves(runs, mode).items():
                seconds, size = _costs(runs, method)
                for removal in curve:
                    change = float(np.mean(removal.after - removal.before))
                    rows.append(
                        (
                            *(
                                cell,
                                mode,
                                method,
                                removal.count,
                                removal.runs,
                                removal.mean,
                                _number(removal.deviation),
                            ),
                            change,
                            None if removal.t_test is None else _number(removal.t_test.p_value),
                            _number(removal.t_adjusted),
                            None if removal.wilcoxon is None else _number(removal.wilcoxon.p_value),
                            _number(removal.wilcoxon_adjusted),
                            held_out.get((method, removal.count)),
                            *(seconds, size),
                        )
                    )
    columns = (
        *("cell", "trained again", "method", "left out", "runs", "test error", "std", "change"),
        *("p (t)", "p (t), Holm", "p (Wilcoxon)", "p (Wilcoxon), Holm", "held-out value", "seconds to rank"),
        "bytes of states read",
    )
    caption = (
        "A cell is one data set and model with its settings. Means over runs, with the standard deviation of the "
        "sample. Change: against nothing left out in the same runs; tests are paired and two-sided, Holm's correction "
        "is over all counts of a method."
    )
    return Table("removals", caption, columns, tuple(rows))


def choices(cells: Cells) -> Table:
    """Return how often a number that was chosen on held-out data helped or harmed on the test set."""
    rows: list[tuple[Cell, ...]] = []
    for cell, runs in cells.items():
        by_choice = defaultdict(list)
        for run in runs:
            for choice in run.choices:
                by_choice[choice.mode, choice.method, choice.strategy].append(choice)
        for (mode, method, strategy), chosen in by_choice.items():
            before, after = [c.before for c in chosen], [c.after for c in chosen]
            of = measure_reliability([{strategy: choice} for choice in chosen])[strategy]
            tests = [test(before, after).p_value for test in (paired_t_test, wilcoxon_test) if len(chosen) > 1]
            rows.append(
                (
                    *(cell, mode, method, strategy, of.runs, of.helped, of.harmed, of.abstained, of.mean_count),
                    *(float(np.mean(before)), float(np.mean(after)), of.worst_change),
                    *((_number(p_value) for p_value in tests) if tests else (None, None)),
                )
            )
    columns = (
        *("cell", "trained again", "method", "chosen by", "runs", "helped", "harmed", "nothing changed"),
        *("left out, mean", "test error before", "test error after", "worst change", "p (t)"),
        "p (Wilcoxon)",
    )
    caption = (
        "Runs in which the choice lowered (helped) or raised (harmed) the test error, which it did not see; paired "
        "two-sided tests of before and after."
    )
    return Table("choices", caption, columns, tuple(rows))


def methods(cells: Cells) -> Table:
    """Return the cost of each method, and how well it detects examples known to be corrupt."""
    rows: list[tuple[Cell, ...]] = []
    for cell, runs in cells.items():
        training = [run.training["seconds"] for run in runs if "seconds" in run.training]
        fit = float(np.mean(training)) if training else None
        for method in dict.fromkeys(name for run in runs for name in run.methods):
            costs = [run.methods[method] for run in runs if method in run.methods]
            seconds, size = _costs(runs, method)
            failed = [cost.failed for cost in costs if cost.failed]
            row: list[Cell] = [cell, method, len(costs) - len(failed), seconds]
            row += [None if seconds is None or not fit else seconds / fit, size]
            for values in ([c.average_precision for c in costs], [c.auroc for c in costs]):
                known = [value for value in values if value is not None]
                row += _mean_std(known) if known else (None, None)
            rows.append((*row, failed[0] if failed else None))
    columns = (
        *("cell", "method", "runs", "seconds", "seconds per second of training", "bytes of states read"),
        *("average precision", "std", "AUROC", "std of AUROC", "why it gave nothing"),
    )
    caption = "Wall time of ranking; average precision and AUROC of finding examples known to be corrupt."
    return Table("methods", caption, columns, tuple(rows))


def runs(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the jobs of sweeps: mean and standard deviation of every number, a row per configuration."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, row in named(rows):
        groups[name].append(row)
    metrics = [key for key in dict.fromkeys(key for row in rows for key in row) if _is_metric(key, rows)]
    table: list[tuple[Cell, ...]] = []
    for name, group in groups.items():
        cells: list[Cell] = []
        for metric in metrics:
            values = [float(row[metric]) for row in group if row.get(metric) is not None]
            cells += _mean_std(values) if values else (None, None)
        table.append((name, len(group), *cells))
    columns = ["configuration", "jobs"]
    for metric in metrics:
        columns += [metric.replace("_", " "), f"{metric.replace('_', ' ')}, std"]
    return Table("jobs", "Means over the jobs of one configuration.", tuple(columns), tuple(table))


def every_run(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the jobs of sweeps one by one: a row per configuration and seed, with every number."""
    metrics = [key for key in dict.fromkeys(key for row in rows for key in row) if _is_metric(key, rows)]
    table = [(name, row.get("seed"), *(row.get(metric) for metric in metrics)) for name, row in named(rows)]
    table.sort(key=lambda row: (row[0], str(row[1])))
    columns = ("configuration", "seed", *(metric.replace("_", " ") for metric in metrics))
    return Table("every-job", "Every job: its configuration, its seed and its numbers.", columns, tuple(table))


def named(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield rows with the name of their configuration: the values that differ, other than seeds and numbers."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not _is_metric(key, rows)]
    keys = [key for key in keys if key not in NOT_A_METRIC]
    differing = [key for key in keys if len({str(row.get(key)) for row in rows}) > 1]
    for row in rows:
        parts = [f"{key.removeprefix('override ')}={row[key]}" for key in differing if row.get(key) is not None]
        yield ", ".join(parts) or "all jobs", row


def _is_metric(key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row[key] for row in rows if row.get(key) is not None]
    return key not in NOT_A_METRIC and bool(values) and all(_is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _held_out(runs: Sequence[RunResults], mode: str) -> dict[tuple[str, int], float]:
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    for run in runs:
        for point in run.points:
            if point.mode == mode and point.measured.chosen_by is not None:
                values[point.method, point.count].append(point.measured.chosen_by)
    return {key: float(np.mean(held_out)) for key, held_out in values.items()}


def _costs(runs: Sequence[RunResults], method: str) -> tuple[float | None, int | None]:
    costs = [run.methods[method] for run in runs if method in run.methods]
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    sizes = [cost.read_bytes for cost in costs if cost.read_bytes is not None]
    return (float(np.mean(seconds)) if seconds else None), (round(np.mean(sizes)) if sizes else None)


def _mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    if not values:
        raise ConfigurationError("expected one value or more, got none")
    return float(np.mean(values)), (float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
