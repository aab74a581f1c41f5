"""The results of the main job as a row of its sweep's table, and as results that merge with those of other runs."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_sgdinf.studies import summary
from lightning_sgdinf.studies.job import cell_of, main_groups
from lightning_sgdinf.studies.pipeline.parts import PipelineParts
from lightning_sgdinf.studies.pipeline.stages import PipelineResult
from lightning_sgdinf.studies.results import Choice, Measured, MethodCost, Point, RunResults

NOT_OF_A_CELL = {"estimator", "report", "logger", "runner", "experiment"}
"""Groups that do not change what repeats are repeats of."""


def row_of(parts: PipelineParts, result: PipelineResult) -> dict[str, summary.Cell]:
    """Return the row in the table of a sweep."""
    cleansed, name = result.cleansed, next(iter(result.ranked.scores))
    row: dict[str, summary.Cell] = {"seed": parts.seed, **main_groups(parts.choices)}
    row |= {
        "test_error_before": cleansed.before.error,
        "test_error_after": cleansed.after.error,
        "test_loss_before": cleansed.before.loss,
        "test_loss_after": cleansed.after.loss,
        "changed": len(cleansed.selection),
        "seconds_training": result.trained.seconds,
        "seconds_ranking": result.ranked.seconds[name],
    }
    if name in result.detections:
        detection = result.detections[name]
        row |= {"auroc": detection.auroc, "average_precision": detection.average_precision}
    return row


def results_of(parts: PipelineParts, result: PipelineResult, overrides: Mapping[str, str]) -> RunResults:
    """Return the points of the curves, the choice and the costs of the rankings, which merge with those of other runs.

    Args:
        parts: Of the job.
        result: Of its stages.
        overrides: Values of the command line, which tell a cell from others.
    """
    cleansed, ranked, detections = result.cleansed, result.ranked, result.detections
    choices = parts.choices
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
    settings = {key: value for key, value in main_groups(choices).items() if key not in NOT_OF_A_CELL}
    return RunResults(
        cell=cell_of(choices),
        seed=parts.seed,
        settings={**settings, **overrides},
        training={"seconds": result.trained.seconds, "record_bytes": result.trained.record_bytes()},
        methods={
            name: MethodCost(
                seconds=seconds,
                auroc=detections[name].auroc if name in detections else None,
                average_precision=detections[name].average_precision if name in detections else None,
            )
            for name, seconds in ranked.seconds.items()
        },
        points=tuple(points.values()),
        choices=(choice,),
    )
