"""The content of a study's page: table, quality against cost, answers before and after, forgotten examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_sgdinf.report import Example
from lightning_sgdinf.report.unlearning import CostPoint, ForgettingPage
from lightning_sgdinf.studies.unlearning.requests import PreparedRequest
from lightning_sgdinf.studies.unlearning.tables import Rows, summary

SHOWN = 12
"""Examples of the set that are shown."""


def forgetting_page(prepared: PreparedRequest, rows: Rows, seeds: Sequence[Rows], name: str) -> ForgettingPage:
    """Return what the page shows.

    Args:
        prepared: The request on one seed's data, for the pictures.
        rows: The results of that seed.
        seeds: The results of all.
        name: Of the study's cell.
    """
    selection, data = prepared.selection, prepared.data
    ids = [*selection.drop, *selection.relabel][:SHOWN]
    names = data.class_names
    examples = tuple(
        (
            j,
            Example(
                image=data.image(j).permute(1, 2, 0).numpy(),
                label=names[int(data.train_set.labels[j])],
                true_label=names[selection.relabel[j]] if j in selection.relabel else None,
            ),
        )
        for j in ids
    )
    confusions = {method: np.array(row["confusion"]) for method, row in rows.items() if "confusion" in row}
    chosen = [method for method in ("before", "exact") if method in confusions]
    chosen += [method for method in confusions if method not in ("before", "exact", "fresh")][:1]
    return ForgettingPage(
        title=f"Unlearning: {name}",
        about=(
            f"{len(selection)} training examples ({selection.reason}); every method on the same recorded run, judged "
            f"by the exact run on test data. {len(seeds)} seeds."
        ),
        tables=(summary(seeds, name),),
        points=tuple(_points(seeds)),
        confusions={method: confusions[method] for method in chosen},
        class_names=tuple(names),
        examples=examples,
    )


def _points(seeds: Sequence[Rows]) -> list[CostPoint]:
    points = []
    for method in dict.fromkeys(m for rows in seeds for m in rows):
        own = [rows[method] for rows in seeds if "measures" in rows.get(method, {})]
        if not own or method in ("before", "exact"):
            continue
        values = [row["measures"].get("rest_divergence", row["measures"].get("divergence")) for row in own]
        costs = [row["epochs"] for row in own if row["epochs"] is not None]
        points.append(
            CostPoint(method=method, epochs=float(np.mean(costs)) if costs else None, divergences=tuple(values))
        )
    return points
