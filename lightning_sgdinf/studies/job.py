"""The interface of a study that a configuration names under ``job``, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning import Trainer
from torch.optim import SGD

from lightning_sgdinf.query import MeanLoss, Query
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.studies.recorded_run import Training, classifier_training
from lightning_sgdinf.zoo import ImageData


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects that a configuration gives to a job. All of it can be pickled.

    Attributes:
        dataset: What the group names.
        network: Makes a network from the shape of an example and the number of outputs.
        trainer: Makes a Trainer, given further arguments.
        runner: Makes an InfluenceRunner, given further arguments.
        folder: Where results go.
        choices: Which file of each configuration group was taken.
        optimizer: Makes an optimizer from parameters.
        seed: Of everything that is drawn.
        query: What is asked of trained models.
        logger: Makes a Lightning logger, given further arguments; ``None`` if none was asked for.
        config: The whole configuration, as plain values.
    """

    dataset: Any
    network: Callable[..., Any]
    trainer: Callable[..., Trainer]
    runner: Callable[..., InfluenceRunner]
    folder: Path
    choices: Mapping[str, str]
    optimizer: Callable[..., Any] = SGD
    seed: int = 0
    query: Query = field(default_factory=MeanLoss)
    logger: Callable[..., Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def training(self, data: ImageData, seed: int) -> Training:
        """Return how to train a classifier of the data."""
        return classifier_training(
            data, network=self.network, optimizer=self.optimizer, seed=seed, new_trainer=self.trainer
        )


PIPELINE_GROUPS: Mapping[str, str] = {
    "estimator": "",
    "compare": "",
    "recorder": "",
    "cleansing": "",
    "retrain": "",
    "report": "sgdinf-merge makes the page of its results",
    "logger": "its results are files below output_dir",
    "choose_by": "",
    "on_excess": "",
}
"""Groups of the configuration that only the main job reads, with what another job has in their place."""


class Job(Protocol):
    """A study that ``sgdinf`` does in place of its main job.

    A job may say in an attribute ``ignored_groups``, like `PIPELINE_GROUPS`, which groups of the configuration it does
    not read; such a group on the command line is refused.
    """

    def run(self, parts: Parts) -> float:
        """Do the study and write its results.

        Returns:
            A number for optimising sweeps.
        """
        ...


def main_groups(choices: Mapping[str, str]) -> dict[str, str]:
    """Return the file that was taken of each group that is not part of another."""
    return {group: choice for group, choice in choices.items() if "/" not in group and "@" not in group}


def cell_of(choices: Mapping[str, str]) -> str:
    """Return the name of the runs of one data set and one model."""
    return "_".join(choices.get(group, group) for group in ("dataset", "model"))


def ignored_groups(job: Job) -> Mapping[str, str]:
    """Return the groups of the configuration that a job says it does not read, with what it has in their place."""
    former: Mapping[str, str] | None = getattr(job, "leaves_aside", None)
    if former is not None:
        warn_renamed("the attribute leaves_aside of a job", "ignored_groups")
        return former
    return getattr(job, "ignored_groups", {})
