"""An object that stands where the Trainer was, while a module is replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_sgdinf.errors import UnsupportedRunError


class TrainerStandIn:
    """``self.trainer`` during replay: the recorded epoch and step, and nothing that could act."""

    def __init__(self, **known: Any) -> None:
        self.current_epoch = 0
        self.global_step = 0
        self.training = True
        self.validating = self.testing = self.predicting = self.sanity_checking = self.fast_dev_run = False
        self.barebones = True
        self.world_size = 1
        self.num_nodes = 1
        self.global_rank = self.local_rank = 0
        self.is_global_zero = True
        self.logger = None
        self.loggers: list[Any] = []
        self.callbacks: list[Any] = []
        self.callback_metrics: dict[str, Any] = {}
        for name, value in known.items():
            setattr(self, name, value)

    @contextmanager
    def timeless(self) -> Iterator[None]:
        """Make reading the epoch or the global step an error inside, as for all that is not known."""
        epoch, step = self.__dict__.pop("current_epoch"), self.__dict__.pop("global_step")
        try:
            yield
        finally:
            self.current_epoch, self.global_step = epoch, step

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedRunError(
            f"training_step reads trainer.{name}, which is not part of the record, so the step cannot be taken again "
            f"faithfully. Keep what the step needs on the module instead (set self.{name} in a hook such as "
            "on_train_start)."
        )
