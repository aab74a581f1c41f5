"""Results on disk, one file per repeat, and the table over all cells of a folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.evaluation import jaccard_of_extremes, kendall_tau
from lightning_sgdinf.plain_text import csv_cell, markdown_table
from lightning_sgdinf.studies.agreement.cell import Repeat
from lightning_sgdinf.studies.agreement.published import PUBLISHED
from lightning_sgdinf.studies.cache import Json, read_json, results_of

SETTINGS, TABLE, PAGE = "cell.json", "table.csv", "table.md"
EXTREMES = 10
"""Number of examples of each end that the Jaccard index compares."""

NAMES: Mapping[str, str] = {
    "sgd_influence": "SGD-influence (exact derivative)",
    "no_hessian": "without Hessian",
    "last_epochs": "last epoch",
    "final_parameters": "final parameters, last epoch",
    "koh_liang_paper": "Koh and Liang, as published",
    "koh_liang_solved": "Koh and Liang, solved",
    "accumulated": "ACC-SGD-IE",
    "accumulated_evaluated": "ACC-SGD-IE, query evaluated",
    "random": "random",
}
CELLS: Mapping[str, str] = {"adult_lie": "Adult", "news_lie": "20News", "mnist_lie": "MNIST"}
MODELS: Mapping[str, str] = {"logreg": "LogReg", "dnn": "DNN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A measure over repeats.

    Attributes:
        mean: Its mean.
        deviation: Its standard deviation (of the population, as published).
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Return the statistic of at least one value."""
        return cls(mean=float(np.mean(values)), deviation=float(np.std(values)))

    def __str__(self) -> str:
        return f"{_short(self.mean)} ({_short(self.deviation)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One method in one cell.

    Attributes:
        dataset: Of the cell.
        model: Of the cell.
        method: Its key.
        repeats: Number that gave a result.
        failed: Number that did not.
        tau: Kendall's tau with the truth.
        jaccard: Jaccard index of the extremes.
        seconds: Mean wall time of a repeat.
    """

    dataset: str
    model: str
    method: str
    repeats: int
    failed: int
    tau: Statistic
    jaccard: Statistic
    seconds: float


def to_json(repeat: Repeat) -> Json:
    """Return a repeat as plain values."""
    return {
        "seed": repeat.seed,
        "seconds": dict(repeat.seconds),
        "failed": dict(repeat.failed),
        "notes": list(repeat.notes),
        "true": repeat.true.tolist(),
        "estimates": {name: values.tolist() for name, values in repeat.estimates.items()},
    }


def from_json(about: Json) -> Repeat:
    """Return the repeat that `to_json` was given."""
    return Repeat(
        seed=about["seed"],
        true=np.array(about["true"]),
        estimates={name: np.array(values) for name, values in about["estimates"].items()},
        seconds=about["seconds"],
        failed=about["failed"],
        notes=tuple(about["notes"]),
    )


def file_of(folder: Path, seed: int) -> Path:
    """Return the path of a repeat."""
    return folder / f"seed_{seed:03d}.json"


def repeats(folder: Path) -> list[Repeat]:
    """Return all repeats of a cell, by seed."""
    with results_of(folder):
        return [from_json(read_json(file)) for file in sorted(folder.glob("seed_*.json"))]


def judge(dataset: str, model: str, repeats: Sequence[Repeat]) -> list[Line]:
    """Return how well each method agrees with the truth."""
    lines = []
    for method in dict.fromkeys(name for repeat in repeats for name in repeat.estimates):
        having = [r for r in repeats if method in r.estimates]
        k = min(EXTREMES, len(having[0].true) // 2)
        lines.append(
            Line(
                dataset=dataset,
                model=model,
                method=method,
                repeats=len(having),
                failed=sum(method in r.failed for r in repeats),
                tau=Statistic.of([kendall_tau(r.estimates[method], r.true) for r in having]),
                jaccard=Statistic.of([jaccard_of_extremes(r.estimates[method], r.true, k=k) for r in having]),
                seconds=float(np.mean([r.seconds[method] for r in having])),
            )
        )
    return lines


def cells(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield data set, model and folder of every cell, in the order of the published table."""
    known = {}
    for file in folder.glob(f"*/{SETTINGS}"):
        about = read_json(file)
        known[about["dataset"], about["model"]] = file.parent
    order = {key: number for number, key in enumerate(PUBLISHED)}
    for dataset, model in sorted(known, key=lambda key: (order.get(key, len(order)), key)):
        yield dataset, model, known[dataset, model]


def assemble(folder: Path) -> list[Line]:
    """Assemble the table anew from all cells of a folder, and write it as CSV and as Markdown."""
    with results_of(folder):
        lines = [line for dataset, model, cell in cells(folder) for line in judge(dataset, model, repeats(cell))]
        replace_bytes(folder / TABLE, _csv(lines).encode("utf-8", "replace"))
        replace_bytes(folder / PAGE, markdown(lines).encode("utf-8", "replace"))
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """Return two tables, tau and Jaccard, a column per cell; published values under those they belong to."""
    columns = list(dict.fromkeys((line.dataset, line.model) for line in lines))
    by = {(line.dataset, line.model, line.method): line for line in lines}
    methods = sorted(dict.fromkeys(line.method for line in lines), key=sort_key)
    heads = [f"{CELLS.get(d, d)} {MODELS.get(m, m)}" for d, m in columns]
    parts = []
    for measure, title in (
        ("tau", "Kendall's tau"),
        ("jaccard", f"Jaccard index of the {EXTREMES} + {EXTREMES} extremes"),
    ):
        rows = [[f"{title}: mean (std)", *heads]]
        for method in methods:
            cells = [by.get((d, m, method)) for d, m in columns]
            rows.append([name_of(method), *("" if c is None else str(getattr(c, measure)) for c in cells)])
            published = [PUBLISHED.get(column, {}).get(method) for column in columns]
            if any(published):
                values = ["" if p is None else stated(getattr(p, measure)) for p in published]
                rows.append(["published", *values])
        counts = [max(line.repeats for line in lines if (line.dataset, line.model) == column) for column in columns]
        rows.append(["repeats", *map(str, counts)])
        parts.append(markdown_table(rows, emphasised=["published"]))
    return "\n\n".join(parts) + "\n"


def name_of(method: str) -> str:
    """Return the name of a method in tables and figures."""
    if budget := re.fullmatch(r"refine_(\d+)", method):
        return f"refined at {budget[1]} % of the truth's cost"
    return NAMES.get(method, method)


def sort_key(method: str) -> tuple[int, str]:
    """Return the place of a method in tables: known ones in their order, then refined ones by budget, then chance."""
    order = [name for name in NAMES if name != "random"]
    if method in order:
        return order.index(method), ""
    return len(order) + (method == "random"), method.zfill(20)


def _csv(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    statistics = [f"{measure}_{part}" for measure in ("tau", "jaccard") for part in ("mean", "std")]
    published = [f"published_{name}" for name in statistics]
    writer.writerow(["dataset", "model", "method", "repeats", "failed", *statistics, *published, "seconds"])
    for line in lines:
        stated = PUBLISHED.get((line.dataset, line.model), {}).get(line.method)
        writer.writerow(
            [
                *map(csv_cell, (line.dataset, line.model, line.method)),
                *(line.repeats, line.failed),
                *(f"{v:.6f}" for s in (line.tau, line.jaccard) for v in (s.mean, s.deviation)),
                *((*stated.tau, *stated.jaccard) if stated else ("",) * 4),
                f"{line.seconds:.3f}",
            ]
        )
    return out.getvalue()


def stated(pair: tuple[float, float]) -> str:
    """Return a published mean and deviation as text."""
    return str(Statistic(mean=pair[0], deviation=pair[1]))


def _short(value: float) -> str:
    """Return two digits, without the zero before the point, as the paper writes them."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.2f}")
