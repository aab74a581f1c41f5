"""The table of a study of unlearning: a row per method, means and standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_sgdinf import plain_text
from lightning_sgdinf.report import Table

Rows = Mapping[str, Mapping[str, Any]]
"""The results of one seed, by the method's name."""

COLUMNS = {
    "rest_accuracy": "accuracy, rest",
    "forgotten_accuracy": "accuracy, set",
    "f1": "F1",
    "rest_divergence": "KL rest",
    "forgotten_divergence": "KL set",
    "clean_accuracy": "clean accuracy",
    "triggered_accuracy": "changed, right",
    "attack_rate": "called as attacked",
    "divergence": "KL changed",
}
"""Measures that are shown, with their heads; those that a study does not have are left out."""


def summary(seeds: Sequence[Rows], name: str) -> Table:
    """Return the table of some seeds.

    Args:
        seeds: The results of each.
        name: Of the table.
    """
    methods = list(dict.fromkeys(method for rows in seeds for method in rows))
    first = next(row["measures"] for rows in seeds for row in rows.values() if "measures" in row)
    shown = [key for key in COLUMNS if key in first]
    body = []
    for method in methods:
        own = [rows[method] for rows in seeds if method in rows]
        done = [row for row in own if "measures" in row]
        cells = [spread([row["measures"][key] for row in done]) for key in shown]
        cost = [spread([row[key] for row in done if row[key] is not None], 1) for key in ("epochs", "seconds")]
        factors = spread([row["factor"] for row in done if "factor" in row], 2)
        failed = [row["failed"] for row in own if "failed" in row]
        note = f"{len(failed)} of {len(own)}: {failed[0]}" if failed else ""
        body.append((method, *cells, *cost, factors, len(done), note))
    return Table(
        name=name,
        caption=(
            f"{name}: means and standard deviations over {len(seeds)} seeds; KL in nats, of the exact run's "
            "predictions from the method's, on test data. A fresh training's is the floor."
        ),
        columns=("method", *(COLUMNS[key] for key in shown), "epochs", "seconds", "r", "runs", "refused"),
        rows=tuple(body),
    )


def markdown(table: Table) -> str:
    """Return a table in Markdown, its caption first."""
    return f"{plain_text.markdown(table.caption)}\n\n{plain_text.markdown_table((table.columns, *table.rows))}\n"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return a mean and a standard deviation as text; empty without values."""
    if not len(values):
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values):.{digits}f}"
