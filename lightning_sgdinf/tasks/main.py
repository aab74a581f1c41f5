"""``sgdinf``: train with the recorder on, rank the training examples, cleanse, train again, report.

::

    sgdinf                                                  # digits with wrong labels
    sgdinf dataset=mnist model=mnistnet data_dir=~/data estimator=last_epochs
    sgdinf -m estimator=sgd_influence,last_epochs,random seed=0,1,2

A sweep ends with one table, ``summary.csv``, in its folder.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.evaluation import Detection
from lightning_sgdinf.report import log_report, write_report
from lightning_sgdinf.tasks import summary
from lightning_sgdinf.tasks.configuration import checked, conf_dir, make_job, make_study
from lightning_sgdinf.tasks.console import print_outcome
from lightning_sgdinf.tasks.pipeline import Cleansed, Ranked, Trained, cleanse, detections, rank, train
from lightning_sgdinf.tasks.reporting import report_data
from lightning_sgdinf.tasks.study import Study


def run_study(study: Study, command: str = "") -> tuple[Path, dict[str, summary.Cell]]:
    """All stages of a job.

    Args:
        study: Its parts.
        command: The command line, for the report.

    Returns:
        Path of the report, and the job's row for the table of a sweep.
    """
    (study.folder / "scores").mkdir(parents=True, exist_ok=True)
    trained = train(study)
    ranked = rank(study, trained)
    for name, scores in ranked.scores.items():  # before anything else can go wrong: a walk may have taken hours
        scores.save(study.folder / "scores" / f"{name}.h5")
    cleansed = cleanse(study, trained, ranked)
    data = report_data(study, trained, ranked, cleansed, command)
    page = write_report(data, study.folder / "report")
    log_report(data, trained.logger)
    found = detections(study, ranked)
    print_outcome(study, ranked, cleansed, found, page)
    return page, _row(study, trained, ranked, cleansed, found)


def _row(
    study: Study, trained: Trained, ranked: Ranked, cleansed: Cleansed, found: Mapping[str, Detection]
) -> dict[str, summary.Cell]:
    name = next(iter(ranked.scores))
    row: dict[str, summary.Cell] = {"seed": study.seed}
    row |= {group: choice for group, choice in study.choices.items() if "/" not in group and "@" not in group}
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


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _job(config: DictConfig) -> float:
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
        _refuse_processes_in_a_sweep(config, in_sweep)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.job is not None:
            job, parts = make_job(config, choices)
            return job.run(parts)
        study = make_study(config, choices)
        _, row = run_study(study, command=" ".join(["sgdinf", *sys.argv[1:]]))
    except SgdInfluenceError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    row |= {f"override {key}": value for key, value in _overrides(context.overrides.task)}
    summary.write_row(study.folder, row)
    if in_sweep:
        print(f"Table of the sweep so far: {summary.assemble(Path(context.sweep.dir))}")
    error_after = row["test_error_after"]
    assert isinstance(error_after, float)
    return error_after


def _overrides(arguments: list[str]) -> list[tuple[str, str]]:
    """Overrides of single values; those of whole groups are in the row already."""
    pairs = (argument.split("=", 1) for argument in arguments if "=" in argument)
    return [(key.lstrip("+"), value) for key, value in pairs if "." in key]


def _refuse_processes_in_a_sweep(config: DictConfig, in_sweep: bool) -> None:
    strategy = str(config.trainer.get("strategy", "auto"))
    devices = config.trainer.get("devices", 1)
    if in_sweep and (strategy in ("ddp", "fsdp") or (strategy == "auto" and devices not in (1, "1", [0]))):
        raise ConfigurationError(
            f"a sweep with trainer.strategy={strategy} and trainer.devices={devices}: every process that Lightning "
            "starts would start the sweep again. Use trainer.devices=1, trainer.strategy=ddp_spawn, or single runs"
        )


def main() -> None:
    """Entry point of the command."""
    _job()
