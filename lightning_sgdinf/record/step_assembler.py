"""Assemble a step of what the hooks tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_sgdinf.log import Clip, Draw, Json, MicroBatch, ParamGroup, Step
from lightning_sgdinf.record.random_watch import RandomWatch


class StepAssembler:
    """The micro-batches, gradients and clipping of the step under way.

    Args:
        trainer: Inside ``fit``.
        automatic: The Trainer takes the steps; otherwise ``training_step`` does.
        watch: Reads the random states of this process.

    Attributes:
        micro_batches: Those of the step under way, or of the step that was just taken.
        backward_passes: Number of backward passes since the step began.
        clip: Gradient clipping, if the Trainer has clipped.
    """

    def __init__(self, trainer: Any, *, automatic: bool, watch: RandomWatch) -> None:
        self._trainer = trainer
        self._automatic = automatic
        self._watch = watch
        self.micro_batches: list[MicroBatch] = []
        self.backward_passes = 0
        self.clip: Clip | None = None
        self._changed: tuple[str, ...] = ()
        self._eval_modules: tuple[str, ...] = ()
        self._current: MicroBatch | None = None
        self._loss: Tensor | None = None

    def begin(self, *, changed: tuple[str, ...], eval_modules: tuple[str, ...]) -> None:
        """Begin a step, and forget what came before and led to none.

        Args:
            changed: Labels of the tensors that something else than the optimizer has changed.
            eval_modules: Names of the sub-modules in eval mode.
        """
        self._changed, self._eval_modules = changed, eval_modules
        self.micro_batches = []
        self.clip = None
        self.backward_passes = 0

    def begin_micro_batch(
        self,
        batch_idx: int,
        draws: tuple[Draw, ...],
        transferred_with: dict[str, bytes],
        attributes: Mapping[str, Json],
    ) -> None:
        """Add a batch that is about to go through ``training_step``."""
        self._current = MicroBatch(
            batch_idx=batch_idx,
            draws=draws,
            transferred_with=transferred_with,
            stepped_with=self._watch.capture(),
            attributes=attributes,
        )
        self.micro_batches.append(self._current)

    def end_micro_batch(self, output: Any, fetched: tuple[Draw, ...], carried: Sequence[str]) -> None:
        """Add what ``training_step`` has returned, and what it has fetched from the loaders itself."""
        loss = output.get("loss") if isinstance(output, Mapping) else output
        self._loss = loss.detach() if isinstance(loss, Tensor) else None
        if not self.micro_batches:
            return
        if fetched:
            self.micro_batches[-1] = replace(self.micro_batches[-1], draws=fetched)
        if carried and self.micro_batches:
            self.micro_batches[-1] = replace(self.micro_batches[-1], carried=tuple(carried))
        if output is None and self._automatic:
            self.micro_batches[-1] = replace(self.micro_batches[-1], without_loss=True)

    def repeat_micro_batch(self) -> None:
        """Let the step that has begun be another one on the batch at hand, as manual optimization may take it."""
        self.micro_batches = [self._current] if self._current is not None else []

    def assemble(self, index: int, groups: tuple[ParamGroup, ...], without_gradient: tuple[str, ...]) -> Step:
        """Return the step that has just been taken.

        Args:
            index: Number of the step.
            groups: The param groups that it used.
            without_gradient: Names of their parameters that had no gradient.
        """
        trainer = self._trainer
        return Step(
            index=index,
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            micro_batches=tuple(self.micro_batches),
            groups=groups,
            accumulation=trainer.accumulate_grad_batches if self._automatic else 1,
            clip=self.clip,
            eval_modules=self._eval_modules,
            without_gradient=without_gradient,
            loss=float(self._loss) if self._loss is not None and self._loss.numel() == 1 else None,
            changed=self._changed,
        )
