"""An object that stands where the Trainer was, while a module is replayed.

It answers what holds for the run from the log's header, what changes from step to step from the moment that is set, and
takes logging in silence. Nothing of it acts. What the record does not know it says by name.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_sgdinf.replay.moment import Moment
from lightning_sgdinf.replay.silent import Silent
from lightning_sgdinf.replay.trainer_parts import (
    Metrics,
    bases_of,
    fit_loop_of,
    optimizer_of,
    part_of_kind,
    refuse,
    scheduler_config,
    strategy_of,
)


class TrainerStandIn:
    """``self.trainer`` during replay: what the record knows, and nothing that could act.

    Args:
        later: What is otherwise from some step on, where the run was resumed: number of the step, and facts.
        facts: What holds for the whole run, by the Trainer's own names.

    Attributes:
        moment: The pass at hand; ``None`` where nothing may depend on it.
        end: The moment of a validation at the end of the run.
        unanswered: What was asked for last that is not known; empty if nothing was.
    """

    def __init__(self, *, later: Sequence[tuple[int, Mapping[str, Any]]] = (), **facts: Any) -> None:
        own: dict[str, Any] = self.__dict__
        own["first"], own["later"] = {"world_size": 1, **facts}, later
        own["facts"] = own["first"]
        own["moment"] = Moment()
        own["end"] = Moment(stage="validate")
        own["stage"] = "train"
        own["unanswered"] = ""
        own["rank"] = 0
        own["lightning_module"] = None
        own["named_parameters"] = {}

    def attach(self, module: nn.Module, named_parameters: Mapping[str, nn.Parameter]) -> None:
        """Stand for the Trainer of a module.

        Args:
            module: The LightningModule.
            named_parameters: Its parameters, by their names in the record.
        """
        self.__dict__["lightning_module"], self.__dict__["named_parameters"] = module, named_parameters

    def at(self, moment: Moment) -> None:
        """Believe to be at a moment from now on."""
        own = self.__dict__
        own.update(moment=moment, stage=moment.stage, rank=moment.rank)
        if own["later"]:
            own["facts"] = {**own["first"]}
            for step, facts in own["later"]:
                own["facts"] |= facts if step <= moment.index else {}

    def know(self, **facts: Any) -> None:
        """Learn more that holds for the whole run; ``None`` is not known."""
        self.__dict__["first"].update({name: value for name, value in facts.items() if value is not None})

    def set_end(self, end: Moment) -> None:
        """Let the run end with a validation at that moment."""
        self.__dict__["end"] = end

    @contextmanager
    def validating_at_end(self) -> Iterator[None]:
        """Believe to be in the validation at the end of the run, inside."""
        before = self.moment
        self.at(self.end)
        try:
            yield
        finally:
            self.at(before)

    @contextmanager
    def timeless(self) -> Iterator[None]:
        """Make reading what changes from step to step an error inside, as for all that is not known."""
        before = self.moment
        self.__dict__["moment"] = None
        try:
            yield
        finally:
            self.__dict__["moment"] = before

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Turn an ``AttributeError`` inside that comes of something unknown into one that names it.

        A property of a module that asks the Trainer for what is not known ends in torch's own lookup of attributes,
        which only says that the module has no such property.

        Raises:
            TrainerAttributeError: In the place of such an error.
        """
        self.__dict__["unanswered"] = ""
        try:
            yield
        except AttributeError as error:
            name = str(error).rpartition("attribute ")[2].strip("'")
            is_property = isinstance(getattr(type(self.lightning_module), name, None), property)
            if not (self.unanswered and is_property):
                raise
            refuse(self.unanswered)

    def __setattr__(self, name: str, value: Any) -> None:
        """Forget it, as ``trainer.should_stop = True``: there is nothing to steer."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = self.__dict__
        if name in own["facts"]:
            return own["facts"][name]
        if name in _TIMELESS:
            return _TIMELESS[name](self)
        if name in _OF_THE_MOMENT and own["moment"] is not None:
            answer = _OF_THE_MOMENT[name](own["moment"], self)
            if answer is not None:
                return answer
        own["unanswered"] = f"trainer.{name}"
        refuse(f"trainer.{name}")


def _loggers(trainer: TrainerStandIn) -> list[Any]:
    kinds = trainer.facts.get("logger_classes", [""])
    folder = _scratch(trainer)
    return [Silent(kind, save_dir=folder, log_dir=folder, root_dir=folder, name="replay", version=0) for kind in kinds]


def _scratch(trainer: TrainerStandIn) -> str:
    """Return a folder that goes away with the stand-in: what a step writes for its logger is not wanted twice."""
    folder = trainer.__dict__.get("_folder")
    if folder is None:
        folder = trainer.__dict__["_folder"] = tempfile.mkdtemp(prefix="sgdinf-replay-")
        weakref.finalize(trainer, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _strategy(trainer: TrainerStandIn) -> Any:
    facts = trainer.facts
    return strategy_of(
        str(facts.get("strategy_class", "")),
        world_size=facts["world_size"],
        root_device=facts.get("device", torch.device("cpu")),
        is_global_zero=trainer.is_global_zero,
        global_rank=trainer.global_rank,
        local_rank=trainer.local_rank,
        lightning_module=trainer.lightning_module,
        model=trainer.lightning_module,
        precision_plugin=facts.get("precision_plugin"),
        **_optimization(trainer),
    )


def _optimization(trainer: TrainerStandIn) -> dict[str, Any]:
    if trainer.moment is None:
        return {}
    optimizers, configs = _optimizers(trainer.moment, trainer), _schedulers(trainer.moment, trainer)
    known = {"optimizers": optimizers, "_lightning_optimizers": optimizers}
    return known if configs is None else {**known, "lr_scheduler_configs": configs}


def _last_batch(moment: Moment, trainer: TrainerStandIn) -> bool | None:
    batches = trainer.facts.get("num_training_batches")
    if moment.stage == "validate":
        return True  # of training: validation comes after it
    if not isinstance(batches, (int, float)) or not math.isfinite(batches) or moment.batch_idx < 0:
        return None
    return moment.batch_idx + 1 == batches


def _fit_loop(moment: Moment, trainer: TrainerStandIn) -> Any:
    batches = trainer.facts.get("num_training_batches")
    return fit_loop_of(
        epoch=moment.epoch,
        global_step=moment.global_step,
        batch_idx=moment.batch_idx,
        batches=batches if isinstance(batches, int) else None,
        last=_last_batch(moment, trainer),
        facts=trainer.facts,
    )


def _optimizers(moment: Moment, trainer: TrainerStandIn) -> list[Any]:
    return [optimizer_of(str(trainer.facts.get("optimizer_class", "")), moment.groups, trainer.named_parameters)]


def _schedulers(moment: Moment, trainer: TrainerStandIn) -> list[Any] | None:
    known = trainer.facts.get("lr_schedulers")
    if known is None:
        return None
    return [scheduler_config(number, one, moment.groups) for number, one in enumerate(known)]


def _callbacks(trainer: TrainerStandIn, base: str = "") -> list[Any]:
    """Return what stands for the callbacks of the run, or for those whose class is derived from one of a name."""
    kinds = list(enumerate(trainer.facts.get("callback_classes", [])))
    named = [(n, k) for n, k in kinds if not base or base in (b.__name__ for b in bases_of(k))]
    return [part_of_kind(f"trainer.callbacks[{number}]", kind) for number, kind in named]


def _nothing(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


_TIMELESS: Mapping[str, Callable[[TrainerStandIn], Any]] = {
    "training": lambda t: t.stage == "train",
    "validating": lambda t: t.stage == "validate",
    "evaluating": lambda t: t.stage == "validate",
    "sanity_checking": lambda t: False,
    "testing": lambda t: False,
    "predicting": lambda t: False,
    "state": lambda t: t.facts["state_in"](t.stage) if "state_in" in t.facts else refuse("trainer.state"),
    "fast_dev_run": lambda t: False,  # such runs are not recorded
    "barebones": lambda t: False,
    "should_stop": lambda t: False,
    "interrupted": lambda t: False,
    "received_sigterm": lambda t: False,
    "model": lambda t: t.lightning_module,
    "datamodule": lambda t: part_of_kind("trainer.datamodule", t.facts.get("datamodule_class", "")),
    "callbacks": lambda t: _callbacks(t),
    "checkpoint_callback": lambda t: next(iter(_callbacks(t, "Checkpoint")), None),
    "checkpoint_callbacks": lambda t: _callbacks(t, "Checkpoint"),
    "early_stopping_callback": lambda t: next(iter(_callbacks(t, "EarlyStopping")), None),
    "early_stopping_callbacks": lambda t: _callbacks(t, "EarlyStopping"),
    "progress_bar_callback": lambda t: next(iter(_callbacks(t, "ProgressBar")), None),
    "ckpt_path": lambda t: None,
    "logger": lambda t: next(iter(_loggers(t)), None),
    "loggers": _loggers,
    "log_dir": _scratch,
    "default_root_dir": _scratch,
    "profiler": lambda t: Silent(),
    "print": lambda t: _nothing,
    "save_checkpoint": lambda t: _nothing,
    "callback_metrics": lambda t: Metrics("trainer.callback_metrics"),
    "logged_metrics": lambda t: Metrics("trainer.logged_metrics"),
    "progress_bar_metrics": lambda t: Metrics("trainer.progress_bar_metrics"),
    "global_rank": lambda t: t.rank,
    "local_rank": lambda t: t.rank,
    "node_rank": lambda t: 0,
    "is_global_zero": lambda t: t.rank == 0,
    "num_nodes": lambda t: 1,
    "num_devices": lambda t: t.facts["world_size"],
    "device_ids": lambda t: list(range(t.num_devices)),
    "scaler": lambda t: getattr(t.facts.get("precision_plugin"), "scaler", None),
    "strategy": _strategy,
}
"""Answers that do not change from step to step."""

_OF_THE_MOMENT: Mapping[str, Callable[[Moment, TrainerStandIn], Any]] = {
    "current_epoch": lambda m, t: m.epoch,
    "global_step": lambda m, t: m.global_step,
    "is_last_batch": _last_batch,
    "optimizers": _optimizers,
    "lr_scheduler_configs": _schedulers,
    "fit_loop": _fit_loop,
}
"""Answers that do; ``None`` where the record does not have it."""
