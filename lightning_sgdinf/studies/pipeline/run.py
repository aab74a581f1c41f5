"""The main job from end to end: train and record, rank, cleanse, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_sgdinf.report import publish_report
from lightning_sgdinf.studies.pipeline.parts import REPORT, PipelineParts
from lightning_sgdinf.studies.pipeline.report_contents import report_contents
from lightning_sgdinf.studies.pipeline.run_results import results_of
from lightning_sgdinf.studies.pipeline.stages import PipelineResult, cleanse, detections, rank, train


def run_pipeline(
    parts: PipelineParts, command: str = "", overrides: Mapping[str, str] | None = None
) -> tuple[PipelineResult, Path]:
    """Run all stages and write the scores, the report and the results.

    Args:
        parts: Of the job.
        command: The command line, for the report.
        overrides: Single values of the command line, for merging with other runs.

    Returns:
        The result of the stages, and the path of the report.
    """
    (parts.folder / "scores").mkdir(parents=True, exist_ok=True)
    trained = train(parts)
    ranked = rank(parts, trained)
    for name, scores in ranked.scores.items():  # before anything else can go wrong: a walk may have taken hours
        scores.save(parts.folder / "scores" / f"{name}.h5", overwrite=True)
    cleansed = cleanse(parts, trained, ranked)
    result = PipelineResult(trained=trained, ranked=ranked, cleansed=cleansed, detections=detections(parts, ranked))
    parts.announce(REPORT)
    contents = report_contents(parts, result, command)
    page = publish_report(contents, parts.folder / "report", trained.logger, log=trained.log)
    results_of(parts, result, overrides or {}).save(parts.folder)
    return result, page
