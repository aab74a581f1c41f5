"""``sgdinf-log plan``: the plan of a run, in the terminal."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.planning.costs import recorded_costs
from lightning_sgdinf.planning.plan import plan_run
from lightning_sgdinf.record.plan import RunPlan, default_policies, make_run_plan


def plan_of(what: str, *, steps: int, data: str | None, keeps: Sequence[str], codec: str, timed_steps: int) -> RunPlan:
    """Return the plan of a run that is named on a command line.

    Args:
        what: Path of the log of a short run, or ``package.module:name`` of a LightningModule or of what makes one.
        steps: Optimizer steps of the run.
        data: ``package.module:name`` of a data module or of a training loader, or of what makes one.
        keeps: Names of further policies.
        codec: Name of the states' codec.
        timed_steps: Steps of the trial.

    Raises:
        ConfigurationError: There is no such thing.
        LogError: The log cannot be read.
    """
    if os.path.exists(what) or ":" not in what:
        with RunLog.open(what) as log:
            costs = recorded_costs(log, codec)
        return make_run_plan(costs, steps=steps, keeps=(*default_policies(steps, costs), *keeps))
    model, given = _named(what), None if data is None else _named(data)
    is_data_module = hasattr(given, "train_dataloader")
    return plan_run(
        model,
        None if is_data_module else given,
        datamodule=given if is_data_module else None,
        steps=steps,
        keeps=keeps,
        recorder={"codec": codec},
        timed_steps=timed_steps,
    )


def _named(target: str) -> Any:
    """Return what ``package.module:name`` names, or what it returns where it is a class or a function."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as for `python -m`
    try:
        value: Any = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{target!r}: {error}. Expected package.module:name, of an object or of what makes it without arguments"
        ) from error
    makes_it = isinstance(value, type) or (callable(value) and not hasattr(value, "training_step"))
    return value() if makes_it else value
