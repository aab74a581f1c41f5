"""Jobs other than cleansing: what a configuration may name under ``job``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning import Trainer
from torch.optim import SGD

from lightning_sgdinf.query import MeanLoss, Query
from lightning_sgdinf.runner import InfluenceRunner


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a configuration gives to a job. All of it can be pickled.

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


OF_THE_MAIN_JOB: Mapping[str, str] = {
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
"""Parts of the configuration that only the main job looks at, with what to know of another job in their place."""


class Job(Protocol):
    """What ``sgdinf`` does in place of its main job.

    A job may say in an attribute ``leaves_aside``, like `OF_THE_MAIN_JOB`, which parts of the configuration it does not
    look at; such a part on the command line is refused.
    """

    def run(self, parts: Parts) -> float:
        """Do it, and write what came of it.

        Returns:
            A number for optimising sweeps.
        """
        ...
