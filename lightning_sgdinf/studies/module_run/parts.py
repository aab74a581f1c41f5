"""The objects that the job for a module of the caller's is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule

from lightning_sgdinf.cleansing import CleansingStrategy, OnExcess
from lightning_sgdinf.query import Query
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.studies.pipeline import ReportSettings
from lightning_sgdinf.studies.recorded_run import Training
from lightning_sgdinf.studies.retraining import Retrain

IGNORED_GROUPS: Mapping[str, str] = {
    "optimizer": "the LightningModule has its own configure_optimizers; what is to vary is an argument of the module",
    "noise": "labels are the data module's own",
}
"""Groups of the configuration that this job does not read, with what to use in their place."""


@dataclass(frozen=True, kw_only=True)
class ModuleParts:
    """The objects that the job for a module of the caller's is made of.

    Attributes:
        training: How to train; its seed is that of everything that is drawn.
        folder: Where results go.
        data: Training and validation data; test data, too, if it has any.
        new_logger: Makes the Trainer's logger; ``None`` for none.
        recorder: Records the run.
        runner: Ranks the training examples.
        query: The quantity that the scores are about, and that the effect is measured by; the first, if several.
        methods: How to rank, by name; the first is the job's own, the others are for comparison.
        cleansing: What to do with the ranking.
        retraining: How to train again.
        on_excess: What becomes of a choice that leaves no example, or none of a class.
        report: What the report shows.
        choices: Which file of each configuration group was taken.
        config_text: The whole configuration, for the report.
    """

    training: Training
    folder: Path
    data: LightningDataModule
    new_logger: Callable[[], Any]
    recorder: Any
    runner: InfluenceRunner
    query: Query
    methods: Mapping[str, Any]
    cleansing: CleansingStrategy
    retraining: Retrain
    on_excess: OnExcess
    report: ReportSettings
    choices: Mapping[str, str]
    config_text: str = ""


def is_data_module(data: Any) -> bool:
    """Tell if something is a LightningDataModule."""
    return isinstance(data, LightningDataModule)


def is_lightning_module(model: Any) -> bool:
    """Tell if something is a LightningModule."""
    return isinstance(model, LightningModule)
