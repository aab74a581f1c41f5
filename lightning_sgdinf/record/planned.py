"""A recorder's plan: the cost of what it is about to record, and of the replay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from lightning_sgdinf.extras import require
from lightning_sgdinf.record.plan import RunPlan
from lightning_sgdinf.record.recorded_fit import Settings


class Planned:
    """A recorder of which the cost can be asked before it records."""

    _settings: Settings

    def plan(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        steps: int,
        timed_steps: int = 5,
        trainer: Mapping[str, Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> RunPlan:
        """Forecast what recording a run and replaying it will cost, for this recorder's policy and the usual ones.

        A few steps of a copy are trained, recorded, walked back and taken again; nothing of the caller's is changed,
        random generators included. ``print`` shows the result as a table.

        Args:
            model: The LightningModule that is to be trained.
            train_dataloaders: As for ``Trainer.fit``; without any data only bytes are forecast, uncompressed.
            val_dataloaders: As for ``Trainer.fit``; the query is asked of them.
            datamodule: In place of loaders.
            steps: Optimizer steps that the run will have, at least 1.
            timed_steps: Steps of the trial, at least 4; 0 for none, and bytes only.
            trainer: Options of the Trainer that a step depends on, e.g. ``{"accumulate_grad_batches": 4}``.
            folder: Where the trial's log lies for a while; the system's folder for temporary files if ``None``.

        Raises:
            ConfigurationError: An argument that cannot work.
            UnsupportedRunError: The run cannot be recorded; says why and what to do instead.
        """
        settings = self._settings
        names = ("store_batches", "example_key", "digest_batches", "strict", "codec")
        plan = require("lightning_sgdinf.planning", extra="").plan_run(
            model,
            train_dataloaders,
            val_dataloaders,
            datamodule,
            steps=steps,
            keeps=(settings.keep,),
            recorder={name: getattr(settings, name) for name in names},
            timed_steps=timed_steps,
            trainer=trainer,
            folder=folder,
        )
        return cast(RunPlan, plan)
