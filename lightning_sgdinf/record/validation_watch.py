"""The validation passes of a fit: what was logged in each, of which model, on which data.

A query of the final model is compared with the last of them, where that was a whole pass of this very model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback

from lightning_sgdinf.log import Json, uncompiled
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.record.guard import Guard, guarded
from lightning_sgdinf.record.patches import Patches


class ValidationWatch:
    """Watches validation passes.

    Args:
        trainer: About to fit.
        module: The LightningModule.
        guard: Runs what the Trainer's methods call.
        patches: Takes the patches of strategy and precision plugin.
    """

    def __init__(self, trainer: Any, module: Any, guard: Guard, patches: Patches) -> None:
        self._trainer, self._module, self._guard = trainer, module, guard
        self._batches = 0
        self._first_batch: int | None = None
        self._model: int | None = None
        patches.place(trainer.precision_plugin, "convert_input", self._around_input)
        patches.place(trainer.strategy, "validation_step", self._around_step)

    def facts(self) -> dict[str, Json]:
        """Return what is known of the pass that ends now."""
        trainer = self._trainer
        metrics = {
            name: float(v.detach()) for name, v in trainer.callback_metrics.items() if getattr(v, "numel", int)() == 1
        }
        return {
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "model": self._model,
            "first_batch": self._first_batch,
            "batches": self._batches,
            "world_size": trainer.world_size,
        }

    def begin(self) -> None:
        """Begin a pass."""
        self._batches, self._first_batch, self._model = 0, None, None

    def _around_input(self, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def watched_convert_input(batch: Any) -> Any:
            self._guard.run(self._note_batch, batch)
            return convert(batch)

        return watched_convert_input

    def _note_batch(self, batch: Any) -> None:
        if self._trainer.validating:
            if not self._batches:
                self._first_batch = batch_digest(batch)
            self._batches += 1

    def _around_step(self, validation_step: Callable[..., Any]) -> Callable[..., Any]:
        def watched_validation_step(*args: Any, **kwargs: Any) -> Any:
            self._guard.run(self._note_model)
            return validation_step(*args, **kwargs)

        return watched_validation_step

    def _note_model(self) -> None:
        if self._trainer.validating and self._model is None:
            self._model = model_digest(self._module, self._trainer.optimizers[0])


class ValidationHooks(Callback):
    """The hooks around a validation of a callback that records: before checkpoints are saved in them."""

    _fit: Any = None

    @guarded
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch it."""
        if self._fit is not None:
            self._fit.watches.validation.begin()

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what was logged in it, of which model."""
        fit = self._fit
        if fit is not None and fit.recording is not None and not trainer.sanity_checking:
            fit.recording.delivery.add_validation(fit.watches.validation.facts())


def model_digest(module: Any, optimizer: Any) -> int:
    """Return a checksum of the parameters that an optimizer holds, and of a module's buffers."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    tensors = {uncompiled(n): p.detach() for n, p in module.named_parameters() if id(p) in held}
    return batch_digest(tensors | {uncompiled(n): b for n, b in module.named_buffers()})
