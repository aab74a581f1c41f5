"""The Trainer's own methods around a training step: what they are given is noted as they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_sgdinf.log import Clip, Json
from lightning_sgdinf.record.attributes import AttributeWatch
from lightning_sgdinf.record.follower_watch import FollowerWatch
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.loaders import LoaderTap
from lightning_sgdinf.record.operation_watch import OperationWatch
from lightning_sgdinf.record.patches import Patches
from lightning_sgdinf.record.recording import Recording


class TrainerTap:
    """Tells the recording of micro-batches and clipping.

    Args:
        guard: Runs what the Trainer's methods call.
        loaders: Has the batch at hand.
        attributes: Of the module.
        operations: Looks at its losses.
        followers: Looks at its frozen parameters.

    Attributes:
        followers: The same.
        recording: Is told, while there is one.
        batch_idx: Of the batch at hand: ``training_step`` need not be given it.
    """

    def __init__(
        self,
        guard: Guard,
        loaders: LoaderTap,
        attributes: AttributeWatch,
        operations: OperationWatch,
        followers: FollowerWatch,
    ) -> None:
        self._guard, self._loaders, self._attributes = guard, loaders, attributes
        self._operations, self.followers = operations, followers
        self._before: Mapping[str, Json] = {}
        self.recording: Recording | None = None
        self.batch_idx = 0

    def install(self, trainer: Any, patches: Patches) -> None:
        """Tap the Trainer of the coming fit."""
        patches.place(trainer.strategy, "training_step", self._around_training_step)
        patches.place(trainer.precision_plugin, "clip_gradients", self._around_clipping)

    def _around_training_step(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        def recorded_training_step(*args: Any, **kwargs: Any) -> Any:
            self._guard.run(self._begin)
            output = training_step(*args, **kwargs)
            self._guard.run(self._end, output)
            return output

        return recorded_training_step

    def _begin(self) -> None:
        if (recording := self.recording) is not None:
            draws, transferred_with = self._loaders.take()
            self._before = self._attributes.read()
            told = self._before if recording.delivery.is_open else self._attributes.read_all()
            recording.begin_micro_batch(self.batch_idx, draws, transferred_with, told)
            self.followers.before_step()

    def _end(self, output: Any) -> None:
        if self.recording is not None:
            self._operations.look(output, self.batch_idx)
            self.followers.after_step()
            carried = self._attributes.carried(self._before)
            self.recording.assembler.end_micro_batch(output, self._loaders.take_fetched(), carried)

    def _around_clipping(self, clip_gradients: Callable[..., None]) -> Callable[..., None]:
        def recorded_clip_gradients(
            optimizer: Any, clip_val: float = 0.0, gradient_clip_algorithm: Any = "norm"
        ) -> None:
            self._guard.run(self._clip, clip_val, gradient_clip_algorithm)
            clip_gradients(optimizer, clip_val, gradient_clip_algorithm)

        return recorded_clip_gradients

    def _clip(self, clip_val: float | None, gradient_clip_algorithm: Any) -> None:
        if self.recording is not None and clip_val is not None and clip_val > 0:
            algorithm = str(getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm))
            self.recording.assembler.clip = Clip(float(clip_val), "value" if algorithm == "value" else "norm")
