"""One seed of a study of repair: the run, what each cause finds, and what each treatment makes of it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.evaluation import RepairJudge, detect
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.studies.cache import Json, load_or_compute
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.studies.recorded_run import StoredRun, TrainedRun, Training
from lightning_sgdinf.studies.repair.causes import Cause, CauseContext, Suspects, sees_all_validation_data
from lightning_sgdinf.studies.repair.corruptions import Corrupted
from lightning_sgdinf.updates import FreshTraining, ModelUpdate
from lightning_sgdinf.updates.repair import Failures
from lightning_sgdinf.zoo import ImageData

FRESH_SEED = 77
"""Added to the seed of the run for a fresh training, once more for every further one."""

DEPTHS = (100, 300, 1000)
"""Numbers of examples at which the precision of a ranking is measured, beside the number selected."""

OF_TEST_DATA = ("test_loss", "test_accuracy")
"""Measures that need no half of the validation set that nobody looked at."""

logger = printable_logger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairCell:
    """One seed.

    Attributes:
        parts: What the configuration names.
        corrupted: What is trained on.
        causes: By name.
        treatments: By name; ``None`` for a fresh training, which only the cell knows how to do.
        count: How many examples a ranking selects.
        fresh_runs: How many fresh trainings, each with a seed of its own, the measures of one are the means of.
        seed: Of run, halves and rankings.
        keep: The states that the record keeps.
        keep_record: Leave the record in the folder.
        folder: Of its results.
    """

    parts: Parts
    corrupted: Corrupted
    causes: Mapping[str, Cause]
    treatments: Mapping[str, Any]
    count: int
    fresh_runs: int
    seed: int
    keep: str
    keep_record: bool
    folder: Path
    _suspects: dict[str, Suspects] = field(default_factory=dict)
    _open: dict[str, Any] = field(default_factory=dict)

    def measure(self, ranked: list[str], treated: list[str], treatments: list[str]) -> tuple[Json, Json]:
        """Return the suspects of causes, by name, and what treatments made of it, by cause and treatment.

        What is on disk is not computed again.

        Args:
            ranked: Causes that are only to be judged as rankings.
            treated: Causes whose selections are treated.
            treatments: Names of what is done.
        """
        suspects, outcomes = {}, {}
        with ExitStack() as stack:
            self._open["run"] = lambda: stack.enter_context(self._opened())
            before = load_or_compute(self.folder / "before" / "run.json", self._before)
            for name in [*treated, *ranked]:
                suspects[name] = load_or_compute(self.folder / "causes" / f"{name}.json", partial(self._cause, name))
            outcomes["none"] = {"before": before}
            for cause in treated:
                files = {name: self.folder / "treated" / f"{cause}__{name}.json" for name in treatments}
                outcomes[cause] = {
                    name: load_or_compute(file, partial(self._treat, cause, name, suspects[cause]))
                    for name, file in files.items()
                }
        if not self.keep_record:
            self._stored.remove_record()
        return suspects, outcomes

    @cached_property
    def _training(self) -> Training:
        return self.parts.training(self.corrupted.data, self.seed)

    @cached_property
    def _stored(self) -> StoredRun:
        return StoredRun(self.folder, self._fit, keep=self.keep)

    def _fit(self, recorder: TrajectoryRecorder) -> TrainedRun:
        data = {"datamodule": self.corrupted.data}
        return self._training.fit(recorder=recorder, data=data, enable_progress_bar=False)

    @contextmanager
    def _opened(self) -> Iterator[OpenedRun]:
        runner = self.parts.runner(certificate="off", progress=False)
        model = self._training.new_model()
        with self._stored.log(), runner.open(model, datamodule=self.corrupted.data, log=self._stored.path) as run:
            yield run

    @cached_property
    def _run(self) -> OpenedRun:
        """Return the run, opened once if something is to be computed."""
        return self._open["run"]()

    @cached_property
    def _failures(self) -> Failures:
        return Failures.halves(self._run, seed=self.seed)

    @cached_property
    def _judge(self) -> RepairJudge:
        data = self.corrupted.data
        return RepairJudge(
            self._training.new_model(),
            data.val_dataloader(),
            data.test_dataloader(),
            before=self._run.model,
            failures=self._failures,
        )

    def _before(self) -> Json:
        failures = self._failures
        return {
            "measures": self._judge.judge(self._run.model).to_json(),
            "seconds": 0.0,
            "notes": [],
            "blamed": list(failures.blamed),
            "held_out": list(failures.held_out),
        }

    def _find(self, name: str) -> Suspects:
        """Return what a cause finds, computed once; its ranking is kept beside its selection."""
        if name not in self._suspects:
            context = CauseContext(
                run=self._run,
                failures=self._failures,
                wrong=self.corrupted.wrong,
                count=self.count,
                others=lambda other: self._find(other).scores,
                seed=self.seed,
            )
            self._suspects[name] = self.causes[name].find(context)
        return self._suspects[name]

    def _cause(self, name: str) -> Json:
        logger.info("seed %d: causes by %s", self.seed, name)
        began = perf_counter()
        try:
            suspects = self._find(name)
        except SgdInfluenceError as error:
            return {"failed": f"{type(error).__name__}: {error}"}
        seconds = perf_counter() - began
        buffer = io.BytesIO()
        np.save(buffer, suspects.scores.harm().numpy())
        replace_bytes(self.folder / "causes" / f"{name}.npy", buffer.getvalue())
        return {
            "seconds": seconds,
            "selection": suspects.selection.to_json(),
            **judged_ranking(suspects.scores, self.corrupted.wrong, self.count),
            **judged_selection(suspects.selection, self.corrupted),
        }

    def _treat(self, cause: str, name: str, suspects: Json) -> Json:
        if "failed" in suspects:
            return {"failed": f"the cause: {suspects['failed']}"}
        selection = Selection.from_json(suspects["selection"])
        run, judge = self._run, self._judge
        logger.info("seed %d: %s, %s", self.seed, cause, name)
        try:
            every = [update.update(run, selection) for update in self._updates(name)]
            judged = [judge.judge(updated.state).to_json() for updated in every]
        except SgdInfluenceError as error:
            return {"failed": f"{type(error).__name__}: {error}"}
        updated = every[0]
        measures = {key: float(np.mean([one[key] for one in judged])) for key in judged[0]}
        row: dict[str, Json] = {
            "measures": measures,
            "seconds": updated.seconds,
            "epochs": updated.epochs,
            "notes": list(updated.notes),
        }
        if (labels := getattr(updated, "labels", None)) is not None:
            true = self.corrupted.data.true_labels
            row["right_labels"] = float(np.mean([int(true[j]) == c for j, c in labels.items()]))
        if sees_all_validation_data(self.causes, cause):
            row["measures"] = {key: value for key, value in measures.items() if key in OF_TEST_DATA}
            return row
        validation, _ = judge.answers(updated.state)
        row["answers"] = validation.log_probabilities.argmax(1)[list(self._failures.held_out)].tolist()
        return row

    def _updates(self, name: str) -> list[ModelUpdate]:
        """Return the update of a name; of fresh trainings as many as are asked for."""
        treatment = self.treatments[name]
        if treatment is None:
            seeds = [self.seed + FRESH_SEED * (number + 1) for number in range(self.fresh_runs)]
            return [fresh_training(self._training, self.corrupted.data, seed) for seed in seeds]
        # What needs to know the failures is given them; the others are as they are.
        return [treatment(failures=self._failures) if isinstance(treatment, partial) else treatment]


def fresh_training(training: Training, data: ImageData, seed: int) -> FreshTraining:
    """Return a training with another seed, on the data set as a selection leaves it."""
    again: Any = replace(training, seed=seed)
    return FreshTraining(lambda dataset: again.fit_dataset(dataset, data).model)


def judged_ranking(scores: Scores, wrong: torch.Tensor, count: int) -> dict[str, Json]:
    """Return how well a ranking finds what is wrong, and what "all with harm above 0" would be."""
    harm, order = scores.harm(), scores.order()
    positive = harm > 0
    row: dict[str, Json] = {"positive": float(positive.double().mean())}
    if 0 < int(wrong.sum()) < len(wrong):
        row["auroc"] = detect(harm, wrong.nonzero()[:, 0].tolist()).auroc
        row["precision_at"] = {
            str(depth): float(wrong[order[:depth]].double().mean())
            for depth in sorted({*DEPTHS, count})
            if depth < len(wrong)
        }
        row["positive_precision"] = float(wrong[positive].double().mean()) if bool(positive.any()) else None
    return row


def judged_selection(selection: Selection, corrupted: Corrupted) -> dict[str, Json]:
    """Return how much of a selection is really wrong, and how many of its new labels are right."""
    ids = [*selection.drop, *selection.relabel]
    true = corrupted.data.true_labels
    return {
        "size": len(ids),
        "relabelled": len(selection.relabel),
        "precision": float(corrupted.wrong[ids].double().mean()) if ids and bool(corrupted.wrong.any()) else None,
        "right_labels": float(np.mean([int(true[j]) == c for j, c in selection.relabel.items()]))
        if selection.relabel
        else None,
    }
