"""The plan of a run: what a trial of it says, for every policy by which states are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_sgdinf.arguments import require_instance, whole_number
from lightning_sgdinf.checkpointing import MEMORY_BYTES
from lightning_sgdinf.planning.costs import bare_costs
from lightning_sgdinf.planning.trial import Trial
from lightning_sgdinf.planning.untouched import brings
from lightning_sgdinf.record import Budget, Keep
from lightning_sgdinf.record.plan import RunPlan, default_policies, make_run_plan


def plan_run(
    model: nn.Module,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    *,
    steps: int,
    keeps: Sequence[str | Keep | Budget] = (),
    recorder: Mapping[str, Any] | None = None,
    timed_steps: int = 5,
    trainer: Mapping[str, Any] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    folder: str | Path | None = None,
) -> RunPlan:
    """Forecast what recording a run and replaying it will cost; nothing of the caller's is changed.

    Args:
        model: The LightningModule that is to be trained.
        train_dataloaders: As for ``Trainer.fit``; without any data only bytes are forecast, uncompressed.
        val_dataloaders: As for ``Trainer.fit``.
        datamodule: In place of loaders.
        steps: Optimizer steps that the run will have, at least 1.
        keeps: Policies to show beside the usual ones.
        recorder: Options of the `TrajectoryRecorder`.
        timed_steps: Steps of the trial, at least 4; 0 for none, and bytes only.
        trainer: Options of the Trainer that a step depends on, e.g. ``{"precision": "bf16-mixed"}``.
        memory_bytes: For rebuilt states in the replay.
        folder: Where the trial's log lies for a while: room for some states more than ``timed_steps``.

    Raises:
        ConfigurationError: An argument that cannot work.
        UnsupportedRunError: The run cannot be recorded.
    """
    require_instance(model, "model", ("training_step", "configure_optimizers"), ("LightningModule",))
    whole_number(steps, "steps", least=1)
    whole_number(timed_steps, "timed_steps", least=0)
    options = dict(recorder or {})
    has_data = train_dataloaders is not None or datamodule is not None or brings(model, "train_dataloader")
    if timed_steps and has_data:
        costs = Trial(
            model=model,
            train_dataloaders=train_dataloaders,
            val_dataloaders=val_dataloaders,
            datamodule=datamodule,
            steps=timed_steps,
            recorder=options,
            trainer=trainer or {},
            folder=folder,
        ).costs()
    else:
        costs = bare_costs(model, options.get("codec", "delta"))
    policies = (*default_policies(steps, costs), *keeps)
    return make_run_plan(costs, steps=steps, keeps=policies, memory_bytes=memory_bytes)
