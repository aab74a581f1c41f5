"""Settings that code of the caller's passes on and that optimizers, schedulers and loaders refuse, told with their key.

A configuration is checked against the constructors it names. What these constructors pass on to others only the others
can judge: an optimizer a learning rate of -1, a loader a batch size of 0.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.tasks.validation import OF_HYDRA

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_LOADERS = ("setup", "train_dataloader", "val_dataloader", "test_dataloader")
_HOOKS: Mapping[str, str] = {"configure_optimizers": "model", **dict.fromkeys(_LOADERS, "dataset")}
"""Methods in which such things are made, with the key of the object whose methods they are."""


def refusal(error: Exception, config: Mapping[str, Any]) -> ConfigurationError | None:
    """Return what an optimizer, a scheduler or a loader says of its settings, with the key they come from.

    Args:
        error: Whatever was raised.
        config: Has the settings of the module below ``model``, those of the data module below ``dataset``.

    Returns:
        An error for the user; ``None`` if it is another matter.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    made = (frame.f_locals.get("self") for frame in frames if frame.f_code.co_name == "__init__")
    hook = next((frame for frame in frames if frame.f_code.co_name in _HOOKS and "self" in frame.f_locals), None)
    if hook is None or not any(isinstance(one, (Optimizer, LRScheduler, DataLoader, Sampler)) for one in made):
        return None
    node = _HOOKS[hook.f_code.co_name]
    settings = {str(key): value for key, value in config.get(node, {}).items() if key not in OF_HYDRA}
    key, name = _key_of(str(error), node, settings), type(hook.f_locals["self"]).__name__
    given = ", ".join(f"{k}={v}" for k, v in settings.items() if not isinstance(v, Mapping))
    beside = f" ({name} was given {given})" if key == node and given else ""
    return ConfigurationError(f"{key}: {name}.{hook.f_code.co_name}: {error}{beside}")


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
        settings: The node of the configuration that made it.

    Raises:
        ConfigurationError: An optimizer or a scheduler refused its settings.
    """
    try:
        module.configure_optimizers()
    except Exception as error:  # what is missing here, a Trainer or what `setup` makes, is there when the fit asks
        refused = refusal(error, {"model": settings})
        if refused is not None and "empty parameter list" not in str(error):
            raise refused from error


def _key_of(said: str, node: str, settings: Mapping[str, Any]) -> str:
    """Return the one key whose value stands in a text; that of the node if none or several do."""
    named = [key for key in settings if re.search(rf"\b{re.escape(key)}\b", said)]
    numbers = {float(number) for number in _NUMBER.findall(said)}
    keys = [key for key in named or settings if _is_among(settings[key], numbers)]
    return f"{node}.{keys[0]}={settings[keys[0]]}" if len(keys) == 1 else node


def _is_among(value: Any, numbers: set[float]) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and float(value) in numbers
