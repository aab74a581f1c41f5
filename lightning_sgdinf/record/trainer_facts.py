"""The settings and sizes of a Trainer that a module may ask for while it trains, as plain values."""

from __future__ import annotations

from enum import Enum
from typing import Any

from lightning_sgdinf.log import Json

_ASKED_FOR = (
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "enable_validation",
    "estimated_stepping_batches",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "max_epochs",
    "max_steps",
    "min_epochs",
    "min_steps",
    "num_devices",
    "num_nodes",
    "num_predict_batches",
    "num_sanity_val_batches",
    "num_sanity_val_steps",
    "num_test_batches",
    "num_training_batches",
    "num_val_batches",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "val_check_batch",
    "val_check_interval",
    "world_size",
    "barebones",
)


def trainer_facts(trainer: Any) -> dict[str, Json]:
    """Return what holds for the whole fit, by the Trainer's own names.

    Args:
        trainer: Inside ``fit``, with its loaders.
    """
    facts: dict[str, Json] = {}
    for name in _ASKED_FOR:
        try:
            value = _plain(getattr(trainer, name))
        except Exception:  # what a Trainer of another release or such loaders cannot say is not known
            continue
        facts[name] = value
    configs = trainer.lr_scheduler_configs
    return facts | {
        "strategy_class": _qualified(trainer.strategy),
        "logger_classes": [_qualified(logger) for logger in trainer.loggers],
        "callback_classes": [_qualified(callback) for callback in trainer.callbacks],
        "datamodule_class": "" if trainer.datamodule is None else _qualified(trainer.datamodule),
        "lr_schedulers": [
            {
                "class": _qualified(config.scheduler),
                "interval": config.interval,
                "frequency": config.frequency,
                "name": config.name,
            }
            for config in configs
        ],
    }


def _plain(value: Any) -> Json:
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(type(value).__name__)


def _qualified(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
