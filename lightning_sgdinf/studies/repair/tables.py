"""The tables of a study of repair: how well causes are found, and a row per cause and treatment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_sgdinf.report import Table
from lightning_sgdinf.studies.unlearning.tables import spread

Seed = Mapping[str, Mapping[str, Any]]
"""Of one seed: ``causes`` by name, and ``treated`` by cause and treatment."""

MEASURES = {
    "test_loss": ("test loss", 3),
    "test_accuracy": ("test accuracy", 3),
    "net_share": ("held-out failures, net", 2),
    "fixed_share": ("of them 'fixed', with churn", 2),
}


def identification(seeds: Sequence[Seed], name: str) -> Table:
    """Return the table of causes, a row each, means and standard deviations over seeds."""
    names = list(dict.fromkeys(cause for seed in seeds for cause in seed["causes"]))
    depths = sorted(
        {d for seed in seeds for row in seed["causes"].values() for d in row.get("precision_at", {})}, key=int
    )
    rows = []
    for cause in names:
        own = [seed["causes"][cause] for seed in seeds if cause in seed["causes"]]
        done = [row for row in own if "failed" not in row]
        failed = [row["failed"] for row in own if "failed" in row]
        at = [
            spread([r["precision_at"][str(d)] for r in done if str(d) in r.get("precision_at", {})], 2) for d in depths
        ]
        rows.append(
            (
                cause,
                _spread(done, "auroc", 3),
                *at,
                _spread(done, "positive", 2),
                _spread(done, "positive_precision", 2),
                _spread(done, "size", 0),
                _spread(done, "precision", 2),
                _spread(done, "right_labels", 2),
                _spread(done, "seconds", 1),
                len(done),
                f"{len(failed)} of {len(own)}: {failed[0]}" if failed else "",
            )
        )
    return Table(
        name="causes",
        caption=(
            f"{name}: examples that are wrong, found by each cause; means and standard deviations over {len(seeds)} "
            "seeds. Precision at the top of the ranking, of all with harm above 0, and of what is selected."
        ),
        columns=(
            "cause",
            "AUROC",
            *(f"precision at {d}" for d in depths),
            "share with harm > 0",
            "their precision",
            "selected",
            "precision",
            "new labels right",
            "seconds",
            "runs",
            "refused",
        ),
        rows=tuple(rows),
    )


def treatments(seeds: Sequence[Seed], name: str) -> Table:
    """Return the table of causes and treatments, a row each; changes are against the same seed's run before."""
    keys = list(dict.fromkeys((c, t) for seed in seeds for c, own in seed["treated"].items() for t in own))
    rows = []
    for cause, treatment in keys:
        own = [
            (seed["treated"][cause][treatment], seed["treated"]["none"]["before"])
            for seed in seeds
            if treatment in seed["treated"].get(cause, {})
        ]
        done = [(row, before) for row, before in own if "measures" in row]
        failed = [row["failed"] for row, _ in own if "failed" in row]
        suspects = [seed["causes"].get(cause, {}) for seed in seeds]
        change = [
            row["measures"]["test_loss"] - before["measures"]["test_loss"] for row, before in done if cause != "none"
        ]
        rows.append(
            (
                cause,
                treatment,
                _spread(suspects, "precision", 2),
                *(_spread([row["measures"] for row, _ in done], key, digits) for key, (_, digits) in MEASURES.items()),
                spread(change, 3),
                _spread([row for row, _ in done], "seconds", 1),
                len(done),
                f"{len(failed)} of {len(own)}: {failed[0]}" if failed else "",
            )
        )
    return Table(
        name="repair",
        caption=(
            f"{name}: what treatments make of what causes find; means and standard deviations over {len(seeds)} seeds. "
            "Failures are those of the half of the validation set that nobody looked at; net: fixed less broken, as a "
            "part of them. Read every row beside that of a random set."
        ),
        columns=(
            "cause",
            "treatment",
            "precision",
            *(head for head, _ in MEASURES.values()),
            "change of test loss",
            "seconds",
            "runs",
            "refused",
        ),
        rows=tuple(rows),
    )


def _spread(rows: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    return spread([row[key] for row in rows if row.get(key) is not None], digits)
