"""``sgdinf``: train with the recorder on, rank the training examples, cleanse, train again, report.

::

    sgdinf                                                  # digits with wrong labels
    sgdinf dataset=mnist model=mnistnet data_dir=~/data estimator=last_epochs
    sgdinf -m estimator=sgd_influence,last_epochs,random seed=0,1,2

A sweep ends with a row per job (``summary.csv``) and, in ``merged``, one table, one figure and one page over all jobs
(`lightning_sgdinf.tasks.merging`).
"""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.report import finish_run, publish_report
from lightning_sgdinf.tasks import summary
from lightning_sgdinf.tasks.configuration import checked, conf_dir, make_job, make_study
from lightning_sgdinf.tasks.console import print_outcome
from lightning_sgdinf.tasks.outcome import groups_of, results_of, row_of
from lightning_sgdinf.tasks.pipeline import cleanse, rank, train
from lightning_sgdinf.tasks.progress import JobProgress
from lightning_sgdinf.tasks.refusals import refuse_processes_in_a_sweep, refuse_what_is_left_aside
from lightning_sgdinf.tasks.reporting import report_data
from lightning_sgdinf.tasks.study import Study

_say = logging.getLogger(__name__)
UNWRITABLE: Mapping[int | None, str] = {
    errno.EROFS: "; give an output_dir that can be written to",
    errno.EACCES: "; give an output_dir that can be written to",
    errno.ENOSPC: "; free some space and start it again: what is whole stays",
    errno.EDQUOT: "; free some space and start it again: what is whole stays",
}
"""What to do about a place that takes no file, by the number of the system's error."""


def run_study(
    study: Study, command: str = "", overrides: Mapping[str, str] | None = None
) -> tuple[Path, dict[str, summary.Cell]]:
    """All stages of a job.

    Args:
        study: Its parts.
        command: The command line, for the report.
        overrides: Single values of the command line, for merging with other runs.

    Returns:
        Path of the report, and the job's row for the table of a sweep.
    """
    (study.folder / "scores").mkdir(parents=True, exist_ok=True)
    trained = train(study)
    ranked = rank(study, trained)
    for name, scores in ranked.scores.items():  # before anything else can go wrong: a walk may have taken hours
        scores.save(study.folder / "scores" / f"{name}.h5", overwrite=True)
    cleansed = cleanse(study, trained, ranked)
    data = report_data(study, trained, ranked, cleansed, command)
    _log_choices(study, trained.logger)
    page = publish_report(data, study.folder / "report", trained.logger, log=trained.log)
    print_outcome(study, ranked, cleansed, data.detections, page)
    results_of(study, trained, ranked, cleansed, data.detections, overrides or {}).save(study.folder)
    return page, row_of(study, trained, ranked, cleansed, data.detections)


def _log_choices(study: Study, logger: Any) -> None:
    """What the job was, as hyper-parameters: by these a dashboard groups and compares the runs of a sweep."""
    if hasattr(logger, "log_hyperparams"):
        logger.log_hyperparams({"seed": study.seed, **groups_of(study.choices)})


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _job(config: DictConfig) -> float:
    failed = True
    try:
        result = _attempt(config)
        failed = False
    finally:
        finish_run(failed=failed)  # the next job of a sweep in this process is a run of its own
    return result


def _attempt(config: DictConfig) -> float:
    context = HydraConfig.get()
    choices = {
        group: choice for group, choice in context.runtime.choices.items() if choice and not group.startswith("hydra")
    }
    in_sweep = context.mode == RunMode.MULTIRUN
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the images are in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of what torch has since deprecated
    try:
        config = checked(config)
        if in_sweep:
            refuse_processes_in_a_sweep(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        result = _run(config, choices, context)
    except (SgdInfluenceError, OSError) as error:
        advice = ""
        if not isinstance(error, SgdInfluenceError):
            if error.errno not in UNWRITABLE:
                raise
            advice = UNWRITABLE[error.errno]
        print(f"{type(error).__name__}: {error}{advice}", file=sys.stderr)
        if in_sweep:
            raise  # the sweep's other jobs go on, and it ends with this error
        raise SystemExit(1) from error
    if in_sweep:
        summary.assemble(Path(context.sweep.dir))
    return result


def _run(config: DictConfig, choices: Mapping[str, str], context: Any) -> float:
    """The job, or what it came to if the same job of the same sweep is done."""
    overrides = dict(_overrides(context.overrides.task))
    if config.job is not None:
        job, parts = make_job(config, choices)
        aside = getattr(job, "leaves_aside", {})
        refuse_what_is_left_aside(context.overrides.task, aside)
        result = job.run(parts)  # such jobs keep their own pieces, and go on by themselves
        groups = {group: choice for group, choice in groups_of(choices).items() if group not in aside}
        row = {"seed": config.seed, **groups, "result": result}
        summary.write_row(Path(context.runtime.output_dir), row | _columns(overrides))
        return result
    if context.mode != RunMode.MULTIRUN:
        return _main_job(make_study(config, choices), overrides)
    progress = JobProgress(Path(config.output_dir), OmegaConf.to_yaml(config, resolve=True))
    if progress.result is not None:
        _say.info("%s is done; it is not done again", config.output_dir)
        return progress.result
    if progress.begun:  # what it had begun to write in this very sweep is written anew
        config.recorder.overwrite = True
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    study = make_study(config, choices)
    progress.begin()
    result = _main_job(study, overrides)
    progress.end(result)
    return result


def _main_job(study: Study, overrides: Mapping[str, str]) -> float:
    _, row = run_study(study, command=" ".join(["sgdinf", *sys.argv[1:]]), overrides=overrides)
    summary.write_row(study.folder, row | _columns(overrides))
    error_after = row["test_error_after"]
    assert isinstance(error_after, float)
    return error_after


def _columns(overrides: Mapping[str, str]) -> dict[str, summary.Cell]:
    return {f"override {key}": value for key, value in overrides.items()}


def _overrides(arguments: list[str]) -> list[tuple[str, str]]:
    """Overrides of single values; those of whole groups are in the row already."""
    pairs = (argument.split("=", 1) for argument in arguments if "=" in argument)
    return [(key.lstrip("+"), value) for key, value in pairs if "." in key]


def main() -> None:
    """Entry point of the command."""
    _job()
