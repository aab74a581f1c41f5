"""A trial of a run: a few steps of a copy, recorded, walked back and taken again, against the clock."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_sgdinf.adjoint import Adjoint, AdjointStep, PulledStep
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.log import RunLog, state_checksum
from lightning_sgdinf.log.expected_size import costs_of_log
from lightning_sgdinf.planning.costs import of_bytes
from lightning_sgdinf.planning.peak_memory import PeakMemory, resident_bytes
from lightning_sgdinf.planning.untouched import brings, copy_of_data_module, copy_of_module, left_as_found
from lightning_sgdinf.query import MeanLoss, Query, SubsetLoss
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.record.plan import RunCosts
from lightning_sgdinf.replay import Replayer
from lightning_sgdinf.replay.reproducibility import repeatable
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scoring import job_for

LEAST_STEPS = 4
"""Steps of a trial at least: the first of each kind is a warm-up."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A few steps of a run, on copies; model, data and random numbers stay as they are.

    Attributes:
        model: The LightningModule to train.
        train_dataloaders: As for ``Trainer.fit``.
        val_dataloaders: Likewise; the query is asked of them.
        datamodule: In place of loaders.
        steps: Optimizer steps, at least 4.
        recorder: Options of the `TrajectoryRecorder`.
        trainer: Options of the Trainer that a step depends on (``precision``, ``accumulate_grad_batches``,
            ``accelerator`` ...).
        folder: Where the trial's log lies for a while; the system's folder for temporary files if ``None``.
    """

    model: Any
    train_dataloaders: Any = None
    val_dataloaders: Any = None
    datamodule: Any = None
    steps: int = 5
    recorder: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        if self.steps < LEAST_STEPS:
            raise ConfigurationError(
                f"timed_steps: expected at least {LEAST_STEPS}, of which the first warms up, or 0 for bytes only; got "
                f"{self.steps}"
            )

    def costs(self) -> RunCosts:
        """Take the steps, and return what they cost.

        Raises:
            UnsupportedRunError: The run cannot be recorded; training it would raise the same.
        """
        given = (self.train_dataloaders, self.val_dataloaders, self.datamodule)
        with (
            left_as_found(*given),
            warnings.catch_warnings(),
            tempfile.TemporaryDirectory(dir=self.folder, prefix="sgdinf-plan-") as folder,
        ):
            warnings.simplefilter("ignore")  # of Lightning, about a fit that is none
            return self._costs(Path(folder, "trial.tlog"))

    def _costs(self, path: Path) -> RunCosts:
        before = resident_bytes() or 0
        module, datamodule = copy_of_module(self.model), copy_of_data_module(self.datamodule)
        clock = _StepClock()
        with PeakMemory(_device(self.trainer)) as of_fit:
            trainer = self._fit(module, datamodule, path, clock)
        device = module.device
        with RunLog.open(path) as log:
            state = log.state(len(log))
            known = RunCosts(
                parameters=sum(v.numel() for v in state.params.values()),
                state_bytes=state.nbytes,
                log=costs_of_log(log, self.recorder.get("codec", "delta")),
                steps_per_epoch=-(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches),
                step_seconds=_typical(clock.ends),
                fit_bytes=_beside(of_fit.peak, before, trainer.strategy.root_device),
                repeatable=repeatable(log.header),
            )
            sentence = of_bytes(known.log.codec, known.log.rows, log)
        del state, trainer  # with the optimizer's state
        module.zero_grad(set_to_none=True)
        module.trainer = None
        gc.collect()
        replay = self._replay(module, datamodule, path, before)
        seconds = (
            f"Seconds and memory: {self.steps} steps trained, walked back and taken again on this machine ({device}, "
            f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}), as it was busy then; without the "
            "certificate, whose default adds at most half of the walk, or some seconds to a short one."
        )
        return _with(known, replay, (sentence, seconds))

    def _fit(self, module: Any, datamodule: Any, path: Path, clock: Callback) -> Trainer:
        recorder = TrajectoryRecorder(path, **self.recorder, keep="every_step")
        options = {"accelerator": "auto", "devices": 1, **self.trainer}
        trainer = Trainer(
            **options,
            max_steps=self.steps,
            max_epochs=-1,
            callbacks=[clock, recorder],
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=path.parent,
        )
        if datamodule is None:
            trainer.fit(module, self.train_dataloaders, self.val_dataloaders)
        else:
            trainer.fit(module, datamodule=datamodule)
        return trainer

    def _replay(self, module: Any, datamodule: Any, path: Path, before: int) -> dict[str, Any]:
        """Return the figures of the replay, or why there are none."""
        runner = InfluenceRunner(accelerator=self.trainer.get("accelerator", "auto"), certificate="off", progress=False)
        validation, query, remark = self._asked()
        estimator = _Timed()
        began = time.perf_counter()
        try:
            with (
                PeakMemory(_device(self.trainer)) as peak,
                runner.open(module, self.train_dataloaders, validation, datamodule, log=path) as run,
            ):
                job_for(estimator, runner.settings, run, lambda: runner.bind(run, query), None).result()
                whole = time.perf_counter() - began
                back = _typical(estimator.starts)
                forward = _forward_seconds(run.log, Replayer(run.log, run.objective))
                device = run.host.device
        except SgdInfluenceError as error:
            return {"note": f"Replay was not measured: {type(error).__name__}: {error}"}
        return {
            "back_seconds": back,
            "forward_seconds": forward,
            "once_seconds": max(0.0, whole - self.steps * back),
            "walk_bytes": _beside(peak.peak, before, device),
            "note": remark,
        }

    def _asked(self) -> tuple[Any, Query, str]:
        """Return validation data and the query of the trial; of training examples, where there are no others."""
        if self.val_dataloaders is not None or self.datamodule is not None or brings(self.model, "val_dataloader"):
            return self.val_dataloaders, MeanLoss(), ""
        remark = "Without the time of the query: there were no validation data."
        return self.train_dataloaders, SubsetLoss(range(1), step="training_step"), remark


@dataclass(frozen=True)
class _Timed(SgdInfluence):
    """The exact derivative, with the time at which each step of the walk began."""

    starts: list[float] = field(default_factory=list, compare=False)

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        """Note the time, and pull the step back."""
        self.starts.append(time.perf_counter())
        return SgdInfluence.visit(self, at, adjoint)


class _StepClock(Callback):
    """Notes when each optimizer step of a fit was done."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self._steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.ends.append(time.perf_counter())


def _typical(times: list[float]) -> float:
    """Return the usual time between two of them; the first pair, of which one may be a warm-up, only if there is no
    other."""
    gaps = [after - before for before, after in pairwise(times)]
    return statistics.median(gaps[1:] or gaps)


def _forward_seconds(log: Any, replayer: Replayer) -> float:
    """Return the time of a recorded step taken again, and of the checksum of what it leads to."""
    times = []
    for index in range(max(0, len(log) - 3), len(log)):
        state, step = log.state(index), log.step(index)
        began = time.perf_counter()
        state_checksum(replayer.advance(state, step))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _device(options: Mapping[str, Any]) -> torch.device:
    """Return the kind of device that a Trainer of such options computes on."""
    accelerator = options.get("accelerator", "auto")
    on_cuda = accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_cuda else "cpu")


def _beside(peak: int | None, before: int, device: torch.device) -> int | None:
    """Return by how much a peak exceeds what the process had before; of a device the peak itself."""
    return peak if peak is None or device.type == "cuda" else max(0, peak - before)


def _with(costs: RunCosts, replay: dict[str, Any], sentences: tuple[str, ...]) -> RunCosts:
    note = replay.pop("note", "")
    return replace(costs, **replay, measured_on=(*sentences, note) if note else sentences)
