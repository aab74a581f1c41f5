"""Optimizers made once before the training, to hear what they say of their settings."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.tasks.validation import OF_HYDRA, TARGET

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def check_optimizer(optimizer: Callable[..., Any]) -> None:
    """Make an optimizer of one number.

    Raises:
        ConfigurationError: It refused its settings.
    """
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except Exception as error:  # whatever an optimizer of the caller's says
        raise ConfigurationError(f"optimizer: {error}") from error


def check_module_optimizer(module: Any, settings: Mapping[str, Any]) -> None:
    """Let a LightningModule make its optimizers and schedulers, as far as that can be done without a Trainer.

    Args:
        module: Made for this; it is trained by nobody.
        settings: The node of the configuration that made it, with its ``_target_``.

    Raises:
        ConfigurationError: An optimizer or a scheduler refused its settings; names the key that they come from.
    """
    if not any(True for _ in module.parameters()):
        return  # its layers are made when it is set up
    try:
        module.configure_optimizers()
    except Exception as error:  # what is missing here, a Trainer or what `setup` makes, is there when the fit asks
        if not _is_of_an_optimizer(error) or "empty parameter list" in str(error):
            return
        name, key = str(settings[TARGET]).rpartition(".")[2], _key_of(str(error), settings)
        given = ", ".join(f"{k}={v}" for k, v in _own(settings))
        beside = f" ({name} was given {given})" if key == "model" and given else ""
        raise ConfigurationError(f"{key}: {name}.configure_optimizers: {error}{beside}") from error


def _is_of_an_optimizer(error: Exception) -> bool:
    """Tell if an optimizer or a scheduler raised it, whoever wrote that."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), (Optimizer, LRScheduler)) for frame in frames)


def _key_of(said: str, settings: Mapping[str, Any]) -> str:
    """Return the one key whose value stands in a text; ``"model"`` if none or several do."""
    numbers = {float(number) for number in _NUMBER.findall(said)}
    keys = [k for k, v in _own(settings) if isinstance(v, (int, float)) and float(v) in numbers]
    return f"model.{keys[0]}={settings[keys[0]]}" if len(keys) == 1 else "model"


def _own(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((str(k), v) for k, v in settings.items() if k not in OF_HYDRA)
