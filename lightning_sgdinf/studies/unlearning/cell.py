"""One seed of a study of unlearning: the run, the exact and the fresh one, and what every method makes of it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.evaluation import UnlearningJudge
from lightning_sgdinf.foreign_files import read_tensors
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.studies.cache import load_or_compute
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.studies.recorded_run import StoredRun, TrainedRun, Training
from lightning_sgdinf.studies.unlearning.requests import ForgetRequest, Judge, PreparedRequest
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining, ModelUpdate, Updated
from lightning_sgdinf.updates.datasets import SizedDataset
from lightning_sgdinf.zoo import ImageData

FRESH_SEED = 77
"""Added to the seed of the run for the fresh training."""

logger = printable_logger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnlearningCell:
    """One seed.

    Attributes:
        parts: What the configuration names.
        request: The request to forget.
        data: The data set.
        seed: Of run and request.
        cosine: The learning rate falls to 0 by a cosine, epoch by epoch; it is constant otherwise.
        keep: The states that the record keeps.
        keep_record: Leave the record in the folder.
        folder: Of its results.
    """

    parts: Parts
    request: ForgetRequest
    data: ImageData
    seed: int
    cosine: bool
    keep: str
    keep_record: bool
    folder: Path

    def measure(self, methods: Mapping[str, ModelUpdate]) -> dict[str, dict[str, Any]]:
        """Return the results of the run as it is, of the exact and the fresh one, and of every method, by name.

        What is on disk is not computed again.
        """
        prepared = self.request.prepare(self.data, self.seed)
        training = self._training(prepared.data)
        stored = StoredRun(self.folder, lambda recorder: self._fit(training, prepared.data, recorder), keep=self.keep)
        fresh = FreshTraining(lambda dataset: self._fit_fresh(training, prepared.data, dataset))
        every = {"before": None, "exact": CounterfactualReplay("all"), "fresh": fresh, **methods}
        files = {name: self.folder / f"{name}.json" for name in every}
        judge: dict[str, Judge] = {}
        # A record that was removed is made again only if something is to be computed.
        with nullcontext() if all(file.is_file() for file in files.values()) else stored.log():
            rows = {
                name: load_or_compute(files[name], partial(self._row, name, update, stored, prepared, training, judge))
                for name, update in every.items()
            }
        if not self.keep_record:
            stored.remove_record()
        return rows

    def _fit(self, training: Training, data: ImageData, recorder: TrajectoryRecorder) -> TrainedRun:
        return training.fit(recorder=recorder, data={"datamodule": data}, enable_progress_bar=False)

    def _row(
        self,
        name: str,
        update: ModelUpdate | None,
        stored: StoredRun,
        prepared: PreparedRequest,
        training: Training,
        judge: dict[str, Judge],
    ) -> dict[str, Any]:
        with self._opened(stored, prepared, training) as run:
            if not judge:
                judge["it"] = prepared.judge(training.new_model(), self._exact(run, prepared))
            if update is None:
                updated = Updated(state=run.model, seconds=0.0, epochs=0.0)
            else:
                logger.info("seed %d: %s", self.seed, name)
                try:
                    updated = update.update(run, prepared.selection)
                except SgdInfluenceError as error:
                    return {"failed": f"{type(error).__name__}: {error}"}
            return described(updated, judge["it"])

    def _exact(self, run: OpenedRun, prepared: PreparedRequest) -> ModelState:
        file = self.folder / "exact.pt"
        if not file.is_file():
            logger.info("seed %d: the exact run", self.seed)
            write_state(file, CounterfactualReplay("all").update(run, prepared.selection).state)
        return read_state(file)

    @contextmanager
    def _opened(self, stored: StoredRun, prepared: PreparedRequest, training: Training) -> Iterator[OpenedRun]:
        runner = self.parts.runner(certificate="off", progress=False)
        with runner.open(training.new_model(), datamodule=prepared.data, log=stored.path) as run:
            yield run

    def _training(self, data: ImageData) -> Training:
        training = self.parts.training(data, self.seed)
        if not self.cosine:
            return training
        epochs = self.parts.trainer().max_epochs or 1

        def new_model() -> Any:
            model: Any = training.new_model()
            model.scheduler = partial(CosineAnnealingLR, T_max=epochs)
            return model

        return replace(training, new_model=new_model)

    def _fit_fresh(self, training: Training, data: ImageData, dataset: SizedDataset) -> Any:
        again: Any = replace(training, seed=self.seed + FRESH_SEED)
        given: Any = dataset
        return again.fit_dataset(given, data).model


def described(updated: Updated, judge: Judge) -> dict[str, Any]:
    """Return an outcome and what the judge says of it, as plain values."""
    measures = judge.judge(updated.state)
    row: dict[str, Any] = {
        "measures": asdict(measures),
        "seconds": updated.seconds,
        "epochs": updated.epochs,
        "notes": list(updated.notes),
    }
    if isinstance(judge, UnlearningJudge):
        row["measures"]["f1"] = judge.judge(updated.state).f1
        row["confusion"] = judge.confusion(updated.state).tolist()
    for name in ("factor", "last_epochs"):
        if (value := getattr(updated, name, None)) is not None:
            row[name] = value
    return row


def write_state(file: Path, state: ModelState) -> None:
    """Write parameters and buffers, at once."""
    buffer = io.BytesIO()
    torch.save({"params": dict(state.params), "buffers": dict(state.buffers)}, buffer)
    replace_bytes(file, buffer.getvalue())


def read_state(file: Path) -> ModelState:
    """Return the state that `write_state` wrote."""
    parts = read_tensors(file)
    try:
        return ModelState(params=dict(parts["params"]), buffers=dict(parts["buffers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{file}: expected params and buffers of a model; remove it, and it is made again"
        ) from error
