"""The objects that the main job is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_sgdinf.cleansing import CleansingStrategy, OnExcess, default_grid
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.query import Query
from lightning_sgdinf.studies.recorded_run import Training
from lightning_sgdinf.studies.retraining import Retrain
from lightning_sgdinf.zoo import ImageData, VectorData

logger = printable_logger(__name__)


TRAINING, CLEANSING = "training, recorded", "choosing what to leave out, and training again"
REPORT = "writing the report"
_MOST_LEFT_OUT = 300  # of curves whose counts nobody gave


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The amount that a report shows.

    In a configuration::

        _target_: lightning_sgdinf.studies.pipeline.ReportSettings
        shown: 24

    Args:
        shown: Training examples to show of each end of the ranking, at least 1.
        explained: Wrong predictions to explain, 0 or more; they cost one query each in the walk.
        cases: For how many of these to print what is behind them; the list of all examples knows of all.
        causes: Training examples to name for each.
        curve_counts: Numbers of examples to leave out for the curve of each method, increasing; each costs one
            retraining per method. Empty for no curves, ``None`` for 10, 30, 100 and 300, fewer where those are
            more than half of the training set.

    Raises:
        ConfigurationError: A number below its least value.
    """

    shown: int = 24
    explained: int = 3
    cases: int = 3
    causes: int = 6
    curve_counts: Sequence[int] | None = ()

    def __post_init__(self) -> None:
        if self.shown < 1 or self.explained < 0 or self.cases < 0 or self.causes < 1:
            raise ConfigurationError(
                f"expected shown >= 1, explained >= 0, cases >= 0 and causes >= 1, got {self.shown}, {self.explained}, "
                f"{self.cases} and {self.causes}"
            )

    def counts_below(self, total: int) -> tuple[int, ...]:
        """Return the counts of the curves that leave something to train on, and log those asked for that do not."""
        if self.curve_counts is None:
            return tuple(count for count in default_grid(total) if count <= min(_MOST_LEFT_OUT, total - 1))[-4:]
        if beyond := [count for count in self.curve_counts if count >= total]:
            logger.warning("report.curve_counts: %s are not drawn, there are %d training examples", beyond, total)
        return tuple(count for count in self.curve_counts if 0 < count < total)


@dataclass(frozen=True, kw_only=True)
class MainParts:
    """The objects that the main job is made of, whoever owns data and module.

    Attributes:
        training: How to train; its seed is that of everything that is drawn.
        folder: Where results go.
        new_logger: Makes the Trainer's logger; ``None`` for none.
        recorder: Records the run.
        runner: Ranks the training examples.
        query: The quantity that the scores are about.
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
    new_logger: Callable[[], Any]
    recorder: Any
    runner: Any
    query: Query
    methods: Mapping[str, Any]
    cleansing: CleansingStrategy
    retraining: Retrain
    on_excess: OnExcess
    report: ReportSettings
    choices: Mapping[str, str]
    config_text: str = ""

    @property
    def seed(self) -> int:
        """Return the seed of everything that is drawn."""
        return self.training.seed

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages of the job, in their order."""
        return (TRAINING, *(f"ranking by {name}" for name in self.methods), CLEANSING, REPORT)

    def announce(self, stage: str) -> None:
        """Log that a stage begins, and which of how many it is."""
        logger.info("stage %d of %d: %s", self.stages.index(stage) + 1, len(self.stages), stage)


@dataclass(frozen=True, kw_only=True)
class PipelineParts(MainParts):
    """The objects that the main job on a data set of the zoo is made of.

    Attributes:
        data: Examples to train, validate and test on.
        choose_by: What decides on the choosing half of the validation set.
    """

    data: ImageData | VectorData
    choose_by: Literal["loss", "error"]
