"""What a baseline may look at: a recorded run that has ended, with the model, its training and its validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.examples import Examples
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log.records import MicroBatch
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.batches import Loader
from lightning_sgdinf.replay.borrowed_module import set_modes
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A recorded run, opened.

    Attributes:
        log: The record.
        objective: The opened model.
        model: The final model: with averaged weights, if the run averaged them.
        validation_loader: Where validation examples come from; ``None`` if there is not exactly one.
    """

    log: Trajectory
    objective: Objective
    model: ModelState
    validation_loader: Loader | None = None

    @property
    def size(self) -> int:
        """Number of training examples, ``N``."""
        return self.objective.source.size

    @cached_property
    def training(self) -> Examples:
        """The training examples, with the augmentation of training, once they are known to be those of the record.

        Raises:
            UnsupportedRunError: If there is no data set, but only the batches in the log.
            DataMismatchError: If they are others than the run was trained on.
        """
        examples = self._examples(self.objective.source.loader())
        self._compare_with_record()
        return examples

    @property
    def validation(self) -> Examples:
        """The validation examples.

        Raises:
            ConfigurationError: If there is no validation loader.
        """
        if self.validation_loader is None:
            raise ConfigurationError(
                "this ranking looks at validation examples, and there is not exactly one validation loader; pass the "
                "one to use as val_dataloaders"
            )
        return self._examples(self.validation_loader)

    @contextmanager
    def at(self, model: ModelState) -> Iterator[Callable[[Any], Tensor]]:
        """A model, in eval mode, inside the ``with`` block: gives the training loss of a batch of `Examples`.

        Args:
            model: Its parameters and buffers.
        """
        objective = self.objective
        objective.load(model)
        every = tuple(name for name, _ in objective.module.named_modules())
        last = self.log.step(len(self.log) - 1)
        step = replace(last, micro_batches=(), accumulation=1, eval_modules=every)
        micro = MicroBatch(batch_idx=0, draws=())
        try:
            yield lambda batch: objective.trace(step, micro, batch).loss.detach()
        finally:
            set_modes(objective.module, ())
            objective.forget_modes()

    def _compare_with_record(self) -> None:
        """Make the last batches of training again, as many as hold each example once, and compare their checksums.

        A ranking takes no recorded step again, so that nothing else would show that a data module split its data anew.
        """
        left = self.size
        with random_state.preserved():
            for step in self.log.steps(len(self.log), 0):
                for micro in step.micro_batches:
                    left -= len(micro.example_ids)
                    of_data_set = len(micro.draws) == 1 and micro.draws[0].batch is None
                    if of_data_set and micro.draws[0].digest is not None:
                        self.objective.source.batch(micro, step=step.index)
                if left <= 0:
                    return

    def _examples(self, loader: Loader) -> Examples:
        return Examples(dataset=loader.dataset, collate=loader.collate_fn, bring=self.objective.bring)
