"""Refusals of sweeps that start processes, and of overrides that would change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from lightning_sgdinf.errors import ConfigurationError

NO_STEPS: Mapping[str, str] = {
    "max_epochs": "set it to 1 or more",
    "max_steps": "set it to 1 or more, or to -1 to stop by trainer.max_epochs",
    "limit_train_batches": "set it to 1 or more batches, to a part of them in (0, 1], or leave it out",
}
"""Settings of the Trainer under which, at 0, no step is taken, and what to set."""
STARTS_PROCESSES = ("ddp", "fsdp", "deepspeed")
"""Beginnings of the names of Lightning's strategies that start the command once per device ..."""
STARTS_NONE = ("spawn", "fork", "notebook")
"""... but for those of them whose names end like this."""


def refuse_no_steps(trainer: Mapping[str, Any]) -> None:
    """Refuse a training without a step: it leaves nothing to rank by.

    Args:
        trainer: The arguments of the Trainer.

    Raises:
        ConfigurationError: Names the key that leads to it, and what to set.
    """
    for key, instead in NO_STEPS.items():
        value = trainer.get(key)
        if isinstance(value, (int, float)) and value == 0:
            raise ConfigurationError(f"trainer.{key}={value}: no step is taken, so there is nothing to rank; {instead}")
    if trainer.get("fast_dev_run"):
        raise ConfigurationError(
            f"trainer.fast_dev_run={trainer['fast_dev_run']}: nothing is recorded then, so there is nothing to rank; "
            "for a quick try set trainer.max_epochs=1"
        )


def refuse_processes_in_a_sweep(config: DictConfig) -> None:
    """Refuse processes that Lightning starts by calling the command again: in a sweep each would do the whole sweep.

    True for every launcher: a launcher's job is started from the sweep's command, too, or from its own.

    Raises:
        ConfigurationError: The strategy starts such processes; says what to use.
    """
    trainer = config.get("trainer") or {}
    strategy, devices, nodes = (trainer.get(key, value) for key, value in _DEFAULTS.items())
    name = str(strategy)
    one_device = devices in (1, "1", [0]) and nodes == 1
    again = name.startswith(STARTS_PROCESSES) and not any(part in name for part in STARTS_NONE)
    if again or (name == "auto" and not one_device):
        raise ConfigurationError(
            f"a sweep with trainer.strategy={name} and trainer.devices={devices}: every process that Lightning "
            "starts would start the sweep again. Use trainer.devices=1, trainer.strategy=ddp_spawn, or single runs"
        )


def refuse_ignored_groups(arguments: Sequence[str], ignored: Mapping[str, str]) -> None:
    """Refuse overrides that would change nothing.

    Args:
        arguments: Of the command line.
        ignored: Groups of the configuration that the job does not read, with what to use in their place.

    Raises:
        ConfigurationError: One of them is given; says what to use.
    """
    for argument in arguments:
        place = argument.split("=", 1)[0].lstrip("+~").rpartition("@")[2]  # of a group @ its place in the configuration
        part = place.split(".")[0]
        if part in ignored:
            why = f": {ignored[part]}" if ignored[part] else ""
            raise ConfigurationError(f"{argument}: this experiment does not read {part}{why}; leave it out")


_DEFAULTS = {"strategy": "auto", "devices": 1, "num_nodes": 1}
