"""What a run of the main job found, as a row of its sweep's table and as results that can be merged with other runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_sgdinf.evaluation import Detection
from lightning_sgdinf.tasks import summary
from lightning_sgdinf.tasks.pipeline import Cleansed, Ranked, Trained
from lightning_sgdinf.tasks.results import Choice, Measured, MethodCost, Point, RunResults
from lightning_sgdinf.tasks.study import Study

NOT_OF_A_CELL = {"estimator", "report", "logger", "runner", "experiment"}
"""Groups that do not change what repeats are repeats of."""


def row_of(
    study: Study, trained: Trained, ranked: Ranked, cleansed: Cleansed, found: Mapping[str, Detection]
) -> dict[str, summary.Cell]:
    """The row in the table of a sweep."""
    name = next(iter(ranked.scores))
    row: dict[str, summary.Cell] = {"seed": study.seed, **groups_of(study.choices)}
    row |= {
        "test_error_before": cleansed.before.error,
        "test_error_after": cleansed.after.error,
        "test_loss_before": cleansed.before.loss,
        "test_loss_after": cleansed.after.loss,
        "changed": len(cleansed.selection),
        "seconds_training": trained.seconds,
        "seconds_ranking": ranked.seconds[name],
    }
    if name in found:
        row |= {"auroc": found[name].auroc, "average_precision": found[name].average_precision}
    return row


def results_of(
    study: Study,
    trained: Trained,
    ranked: Ranked,
    cleansed: Cleansed,
    found: Mapping[str, Detection],
    overrides: Mapping[str, str],
) -> RunResults:
    """What can be merged with other runs: the points of the curves, the choice, what the rankings took.

    Args:
        study: The job's parts.
        trained: As `pipeline.train` returned it.
        ranked: As `pipeline.rank` did.
        cleansed: As `pipeline.cleanse` did.
        found: As `pipeline.detections` did.
        overrides: Values of the command line, which tell a cell from others.
    """
    choices = study.choices
    mode = choices.get("retrain", "")
    points = {}
    for curve in cleansed.curves:
        for count, error in zip(curve.counts, curve.mean, strict=True):
            method = curve.method if count else ""
            points[method, count] = Point(
                method=method, mode=mode, count=count, measured=Measured(test_error=float(error))
            )
    choice = Choice(
        method=next(iter(ranked.scores)),
        mode=mode,
        strategy=choices.get("cleansing", ""),
        count=len(cleansed.selection),
        before=cleansed.before.error,
        after=cleansed.after.error,
    )
    settings = {key: value for key, value in groups_of(choices).items() if key not in NOT_OF_A_CELL}
    return RunResults(
        cell="_".join(choices.get(group, group) for group in ("dataset", "model")),
        seed=study.seed,
        settings={**settings, **overrides},
        training={"seconds": trained.seconds, "record_bytes": _size(Path(trained.log))},
        methods={
            name: MethodCost(
                seconds=seconds,
                auroc=found[name].auroc if name in found else None,
                average_precision=found[name].average_precision if name in found else None,
            )
            for name, seconds in ranked.seconds.items()
        },
        points=tuple(points.values()),
        choices=(choice,),
    )


def groups_of(choices: Mapping[str, str]) -> dict[str, str]:
    """Which file was taken of each group that is not part of another."""
    return {group: choice for group, choice in choices.items() if "/" not in group and "@" not in group}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
