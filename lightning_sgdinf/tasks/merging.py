"""The merging of runs at the end of a sweep, and by hand.

At the end of every sweep by itself (`MergeRuns`), by hand::

    sgdinf-merge multirun/2026-11-22/10-00-00
    sgdinf-merge outputs/cleansing --into somewhere
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.plain_text import printable
from lightning_sgdinf.report import finish_run
from lightning_sgdinf.studies import merge
from lightning_sgdinf.tasks.refusals import refuse_processes_in_a_sweep


class MergeRuns(Callback):
    """Merges the runs of a sweep when all are done, and refuses before it begins what no sweep can do.

    In a configuration::

        hydra:
          callbacks:
            merge:
              _target_: lightning_sgdinf.tasks.merging.MergeRuns
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what every job would refuse, before a launcher starts or submits any."""
        try:
            refuse_processes_in_a_sweep(config)
        except ConfigurationError as error:
            print(printable(f"ConfigurationError: {error}"), file=sys.stderr)
            raise SystemExit(1) from error  # Hydra turns other errors of a callback into warnings

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write one table, one figure and one page."""
        folders = [Path(config.hydra.sweep.dir)]
        place = OmegaConf.to_container(config, resolve=False)
        assert isinstance(place, dict)
        if "hydra:" not in str(place.get("output_dir")):  # jobs share a folder for their results
            folders.append(Path(config.output_dir))
        new_logger = partial(_comparison, config) if _is_of_wandb(config.get("logger")) else None
        try:
            merged = merge([folder for folder in folders if folder.is_dir()], new_logger=new_logger)
            print(printable(f"Merged: {merged / 'page.html'}"))
        except SgdInfluenceError as error:
            print(printable(f"Nothing was merged: {error}"), file=sys.stderr)
        finally:
            finish_run(failed=False)


def _is_of_wandb(logger: DictConfig | None) -> bool:
    return bool(logger) and str(OmegaConf.to_container(logger, resolve=False).get("_target_")).endswith("WandbLogger")  # type: ignore[union-attr]


def _comparison(config: DictConfig, folder: Path) -> Any:
    """Return a logger for the run that compares the jobs of a sweep, in the group of their runs."""
    node = copy(config.logger)
    changed = {"save_dir": str(folder), "name": "comparison", "job_type": "comparison", "tags": ["comparison"]}
    with open_dict(node):
        node.update({**changed, "group": config.hydra.sweep.dir})
    return instantiate(node, _convert_="all")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sgdinf-merge``."""
    parser = argparse.ArgumentParser(
        prog="sgdinf-merge", description="Merge the runs of sweeps into one table, one figure and one page."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of sweeps or of results")
    parser.add_argument("--into", type=Path, help="where the outcome goes; FOLDER/merged if not given")
    given = parser.parse_args(arguments)
    try:
        print(printable(str(merge(given.folders, given.into) / "page.html")))
    except SgdInfluenceError as error:
        print(printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    return 0
