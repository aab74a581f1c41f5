"""``sgdinf``: train with the recorder on, rank the training examples, cleanse, train again, report.

::

    sgdinf                                                  # digits with wrong labels
    sgdinf dataset=mnist model=mnistnet data_dir=~/data estimator=last_epochs
    sgdinf -m estimator=sgd_influence,last_epochs,random seed=0,1,2
    sgdinf init wine                                        # a folder with data and a model of one's own
    sgdinf --config-dir conf dataset=wine model=wine_net    # in that folder

A sweep ends with a row per job (``summary.csv``) and, in ``merged``, one table, one figure and one page over all jobs
(`lightning_sgdinf.tasks.merging`).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.plain_text import printable, printable_logger
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.report import finish_run
from lightning_sgdinf.studies import run_module, run_pipeline, summary
from lightning_sgdinf.studies.job import ignored_groups, main_groups
from lightning_sgdinf.studies.module_run import IGNORED_GROUPS
from lightning_sgdinf.studies.module_run import row_of as row_of_module
from lightning_sgdinf.studies.pipeline.run_results import row_of
from lightning_sgdinf.tasks.configuration import (
    checked,
    conf_dir,
    identity_of,
    is_module,
    make_job,
    make_module_parts,
    make_pipeline,
)
from lightning_sgdinf.tasks.console import print_module_outcome, print_outcome
from lightning_sgdinf.tasks.constructors import refusal
from lightning_sgdinf.tasks.overrides import explained
from lightning_sgdinf.tasks.progress import JobProgress
from lightning_sgdinf.tasks.project import init
from lightning_sgdinf.tasks.refusals import refuse_ignored_groups, refuse_processes_in_a_sweep

logger = printable_logger(__name__)
UNWRITABLE: Mapping[int | None, str] = {
    errno.EROFS: "; give an output_dir that can be written to",
    errno.EACCES: "; give an output_dir that can be written to",
    errno.ENOSPC: "; free some space and start it again: what is whole stays",
    errno.EDQUOT: "; free some space and start it again: what is whole stays",
}
"""Advice on a folder that takes no file, by the number of the system's error."""
RENAMED_EXPERIMENTS: Mapping[str, str] = {"lie": "agreement"}
"""Old names of files in ``conf/experiment``, kept for one release."""
_RAISES = "HYDRA_FULL_ERROR"
"""The variable of the environment by which Hydra raises an error in place of printing it."""
_SHOWS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}
"""Options that print something and do nothing."""


class JobRefused(CompactHydraException):
    """A job of a sweep cannot be done, for a reason that its message names; Hydra shows no traceback of these."""


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
    warnings.filterwarnings("default", ".*the old name goes with the next release")  # Python shows none by itself
    try:
        if (experiment := choices.get("experiment", "")) in RENAMED_EXPERIMENTS:
            warn_renamed(f"experiment={experiment}", f"experiment={RENAMED_EXPERIMENTS[experiment]}")
        config = checked(config)
        if in_sweep:
            refuse_processes_in_a_sweep(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        result = _run_told(config, choices, context)
    except (SgdInfluenceError, OSError) as error:
        advice = ""
        if not isinstance(error, SgdInfluenceError):
            if error.errno not in UNWRITABLE:
                raise
            advice = UNWRITABLE[error.errno]
        message = printable(f"{type(error).__name__}: {error}{advice}")
        print(message, file=sys.stderr)
        if in_sweep:
            raise JobRefused(message) from error  # the sweep's other jobs go on, and it ends with the first of these
        raise SystemExit(1) from error
    if in_sweep:
        summary.assemble(Path(context.sweep.dir))
    return result


def _run_told(config: DictConfig, choices: Mapping[str, str], context: Any) -> float:
    """Run the job; what loaders and optimizers in code of the caller's refuse is told with its key."""
    try:
        return _run(config, choices, context)
    except (SgdInfluenceError, OSError):
        raise
    except Exception as error:
        if (refused := refusal(error, config)) is None:
            raise
        raise refused from error


def _run(config: DictConfig, choices: Mapping[str, str], context: Any) -> float:
    """Run the job, or return its result if the same job of the same sweep is done."""
    overrides = dict(_overrides(context.overrides.task))
    if config.job is not None:
        job, parts = make_job(config, choices)
        ignored = ignored_groups(job)
        refuse_ignored_groups(context.overrides.task, ignored)
        result = job.run(parts)  # such jobs have their own cache, and go on by themselves
        groups = {group: choice for group, choice in main_groups(choices).items() if group not in ignored}
        row = {"seed": config.seed, **groups, "result": result}
        summary.write_row(Path(context.runtime.output_dir), row | _columns(overrides))
        return result
    if is_module(config):
        refuse_ignored_groups(context.overrides.task, IGNORED_GROUPS)
    main_job = _module_job if is_module(config) else _main_job
    if context.mode != RunMode.MULTIRUN:
        return main_job(config, choices, overrides)
    progress = JobProgress(Path(config.output_dir), identity_of(config))
    if progress.result is not None:
        logger.info("%s is done; it is not run again", config.output_dir)
        return progress.result
    if progress.begun:  # a record that it began in this very sweep is written anew
        config.recorder.overwrite = True
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    result = main_job(config, choices, overrides, begun=progress.begin)
    progress.end(result)
    return result


def _main_job(
    config: DictConfig,
    choices: Mapping[str, str],
    overrides: Mapping[str, str],
    *,
    begun: Callable[[], None] = lambda: None,
) -> float:
    parts = make_pipeline(config, choices)
    begun()
    result, page = run_pipeline(parts, command=_command(), overrides=overrides)
    print_outcome(parts, result, page)
    summary.write_row(parts.folder, row_of(parts, result) | _columns(overrides))
    return result.cleansed.after.error


def _module_job(
    config: DictConfig,
    choices: Mapping[str, str],
    overrides: Mapping[str, str],
    *,
    begun: Callable[[], None] = lambda: None,
) -> float:
    parts = make_module_parts(config, choices)
    begun()
    result, page = run_module(parts, command=_command())
    print_module_outcome(result, page)
    summary.write_row(parts.folder, row_of_module(parts, result) | _columns(overrides))
    return result.after if result.better == "lower" else -result.after  # a sweep that optimises minimises


def _command() -> str:
    return " ".join(["sgdinf", *sys.argv[1:]])


def _columns(overrides: Mapping[str, str]) -> dict[str, summary.Cell]:
    return {f"override {key}": value for key, value in overrides.items()}


def _overrides(arguments: list[str]) -> list[tuple[str, str]]:
    """Return overrides of single values; those of whole groups are in the row already."""
    pairs = (argument.split("=", 1) for argument in arguments if "=" in argument)
    return [(key.lstrip("+"), value) for key, value in pairs if "." in key]


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["init"]:
        raise SystemExit(init(sys.argv[2:]))
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # modules of the caller's, beside the configuration that names them
    if any(argument in _SHOWS for argument in sys.argv[1:]) and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever pipes a text into `head` has read enough
    if _RAISES in os.environ:
        _job()
        return
    os.environ[_RAISES] = "1"
    try:
        _job()
    except CompactHydraException as error:
        said = (
            str(error)
            if isinstance(error, JobRefused)
            else f"ConfigurationError: {explained(error, sys.argv[1:], conf_dir())}"
        )
        print(printable(said), file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        del os.environ[_RAISES]
