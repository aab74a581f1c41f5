"""One run on its way into a log.

A state is taken right after the optimizer's update, which is what the step leads to. The next step starts from it,
unless something else has changed tensors in between: before its first micro-batch the live tensors are compared with
what was taken, and if they differ they are taken again and the step names them. A step waits for the next one, since
only then is known what the averaging callbacks made of it, and goes to the writer as the next backward pass begins: in
it the training thread leaves the interpreter to the writer for longest.

Of several processes all record their batches, and process 0 the states; see `lightning_sgdinf.record.ranks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.log import state_checksum
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.log.bit_patterns import row_bytes
from lightning_sgdinf.log.records import Clip, Draw, MicroBatch, ParamGroup, Step
from lightning_sgdinf.log.store import LogSizes
from lightning_sgdinf.record.compatibility import SEVERAL_EVALUATIONS
from lightning_sgdinf.record.optimizer_steps import OptimizerSteps, has_gradients
from lightning_sgdinf.record.random_watch import RandomWatch
from lightning_sgdinf.record.resume import Bookmark, differing, footprint, tensor_checksums
from lightning_sgdinf.record.snapshots import Keep, StateReader, changed_tensors
from lightning_sgdinf.state import Layout


class Writer(Protocol):
    """Where a recording goes; `lightning_sgdinf.log.LogWriter` is one."""

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """A free set of flat to pack a state into."""
        ...

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None:
        """A step and the state before it; the flat are given away."""
        ...

    def flush(self) -> None:
        """Make all that was put survive the death of the process."""
        ...

    def finish(
        self,
        layout: Layout,
        flat: dict[str, Tensor],
        *,
        average: Mapping[str, Tensor] | None = None,
        reason: str = "completed",
    ) -> None:
        """The state after the last step."""
        ...

    def abandon(self, reason: str) -> None:
        """The end, without a final state."""
        ...

    def sizes(self) -> LogSizes:
        """How large the log is with all that was put."""
        ...


@dataclass(slots=True)
class _Packed:
    """A state copied into flat."""

    layout: Layout
    flat: dict[str, Tensor]
    index: int = -1  # which state of the run it is, once it is complete


class Recording:
    """Collects what makes up a step, and writes it.

    Args:
        trainer: Training is about to begin.
        module: The LightningModule.
        keep: Which states are stored; `keep` can be set anew until the first step is handed to the writer.
        watch: Takes the random states of this process.
        open_writer: Called at the end of the first step with the reader and more for the header; makes the log.
        problem: Called with a sentence when something makes the run impossible to replay.
        remark: Called with a sentence about something to know.
        after: Where in the log the steps before were recorded, if it is continued.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        *,
        keep: Keep,
        watch: RandomWatch,
        open_writer: Callable[[Recording], Writer],
        problem: Callable[[str], None],
        remark: Callable[[str], None],
        after: Bookmark | None = None,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self.keep = keep
        self._watch = watch
        self._open_writer = open_writer
        self._problem = problem
        self._remark = remark
        self._automatic = bool(module.automatic_optimization)
        self._max_epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        self._optimizer = trainer.optimizers[0]
        self._leads = trainer.global_rank == 0
        self.reader = StateReader(module, self._optimizer, takes_states=self._leads)
        self.steps = OptimizerSteps(
            self._optimizer, names=lambda: self.reader.names, before=self._before_step, after=self._after_step
        )
        self._constants = self._constant_digests()
        self.started_with_average: tuple[float, float] | None = None
        self.average_is_known = True
        self._resumed_after = after
        self.count = 0 if after is None else after.steps
        self._last: tuple[int, tuple[int, int]] | None = None  # count and footprints at a bookmark
        self._writer: Writer | None = None
        self._before: _Packed | None = None  # where the step under way started from
        self._after: _Packed | None = None  # where the last step led to; may be the same
        self._written = self.count
        self._pending: tuple[Step, _Packed] | None = None
        self._changed: tuple[str, ...] = ()
        self._eval_modules: tuple[str, ...] = ()
        self._micro: list[MicroBatch] = []
        self._current: MicroBatch | None = None
        self._loss: Tensor | None = None
        self._clip: Clip | None = None
        self._backwards = 0
        self._evaluated = False
        self._stale = False
        self._not_finite = False

    # What the hooks tell ---------------------------------------------------------------------------------------

    def epoch_begins(self) -> None:
        """Look again at the module's structure, once the callbacks have done to it what they do between epochs."""
        self._stale = True

    def epoch_ends(self) -> None:
        """Check that the parameters that nothing trains have stayed what they were."""
        found = self._constant_digests()
        moved = [n for n, digest in found.items() if self._constants.get(n, digest) != digest]
        self._constants |= found
        if moved:
            self._problem(
                f"{', '.join(moved[:5])} changed in training although no optimizer holds "
                f"{'them' if len(moved) > 1 else 'it'}, and its values are not recorded. Register as buffers what is "
                "updated by hand"
            )

    def micro_batch_begins(self, batch_idx: int, draws: tuple[Draw, ...], transferred_with: dict[str, bytes]) -> None:
        """A batch is about to go through ``training_step``."""
        if self.steps.running and self._automatic:
            if self._evaluated:
                self._problem(SEVERAL_EVALUATIONS)
                return
            self._evaluated = True
        # The Trainer zeroes gradients at these batches: whatever came before and led to no step is forgotten.
        if self._before is None or (self._automatic and batch_idx % self._trainer.accumulate_grad_batches == 0):
            self._open_step()
        self._current = MicroBatch(
            batch_idx=batch_idx, draws=draws, transferred_with=transferred_with, stepped_with=self._watch.capture()
        )
        self._micro.append(self._current)

    def micro_batch_ends(self, output: Any, fetched: tuple[Draw, ...]) -> None:
        """``training_step`` has returned; ``fetched`` is what it took from the loaders itself."""
        loss = output.get("loss") if isinstance(output, Mapping) else output
        self._loss = loss.detach() if isinstance(loss, Tensor) else None
        if fetched and self._micro:
            self._micro[-1] = replace(self._micro[-1], draws=fetched)

    def backward_begins(self) -> None:
        """Gradients are about to be computed."""
        if self._writer is not None:
            self._hand_over(self._writer)

    def backward_done(self) -> None:
        """Gradients of a micro-batch have been added."""
        self._backwards += 1

    def clipped(self, clip: Clip | None) -> None:
        """The Trainer has clipped the gradients of the step under way."""
        self._clip = clip

    def averaged(self, a: float, b: float) -> None:
        """A callback did ``average <- a * average + b * params`` with the present parameters."""
        if self._pending is None and self.count:
            self.average_is_known = False
            self._remark(
                f"the average was updated after step {self.count - 1} had been recorded, between a checkpoint and the "
                "next step, so the average is not recorded"
            )
            return
        if self._pending is None:
            before = self.started_with_average
            self.started_with_average = (a, b) if before is None else (a * before[0], a * before[1] + b)
            return
        step, packed = self._pending
        if step.average is not None:
            a, b = a * step.average[0], a * step.average[1] + b
        self._pending = replace(step, average=(a, b)), packed

    @property
    def state_bytes(self) -> int:
        """Bytes of the state after the last step."""
        return 0 if self._after is None else row_bytes(self._after.layout)

    @property
    def micro_batches(self) -> tuple[MicroBatch, ...]:
        """Those of the step under way, or that was just taken."""
        return tuple(self._micro)

    def bookmark(self, run_id: str, path: Path, *, complete: bool) -> Bookmark | None:
        """Where the log stands, after making sure that it will stand there whatever happens to the process.

        Args:
            run_id: Of the log.
            path: Where it is.
            complete: Nothing more can happen to the average of the weights before the next step. Otherwise the last
                step waits, and is flushed with the next.

        Raises:
            LogWriteError: From the writer.
        """
        if self._writer is None or not self._leads:
            return None
        if self._pending is not None:
            step, packed = self._pending
            self._last = self.count, (footprint(step), state_checksum(packed.layout.unpack(packed.flat)))
            if complete:
                self._hand_over(self._writer)
        self._writer.flush()
        layout, tensors = self.reader.read()
        flat = layout.empty()
        self.reader.pack(layout, tensors, flat)
        return Bookmark(
            run_id=run_id,
            path=str(path.absolute()),
            steps=self.count,
            last=self._last[1] if self._last is not None and self._last[0] == self.count else None,
            tensors=tensor_checksums(layout, flat),
        )

    def close(self, reason: str, average: Mapping[str, Tensor] | None) -> None:
        """Write what is complete, the final state, and the end. Nothing is there if no step was taken.

        Raises:
            LogWriteError: From the writer.
        """
        self.steps.remove()
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            self._hand_over(writer)
            # An interrupt may have come between the optimizer's update and the end of its recording.
            final = next((p for p in (self._after, self._before) if p is not None and p.index == self._written), None)
            if final is None:
                writer.abandon(reason)
                return
            writer.finish(final.layout, final.flat, average=average, reason=reason)
        except SgdInfluenceError as error:
            writer.abandon(f"{reason}; {error}")
            raise

    # A step ----------------------------------------------------------------------------------------------------

    def _open_step(self) -> None:
        if self._stale:
            self.reader.refresh()
            self._stale = False
        layout, tensors = self.reader.read()
        after = self._after
        if (
            after is not None
            and after.layout is layout
            and (self._before is None or self._before is after)
            and self.reader.matches(layout, tensors, after.flat)
        ):
            self._before, self._changed = after, ()
        else:
            self._take_before(layout, tensors)
        self._eval_modules = self.reader.eval_modules()
        self._micro = []
        self._clip = None
        self._backwards = 0

    def _take_before(self, layout: Layout, tensors: list[Tensor]) -> None:
        after = self._after
        if self._before is None or self._before is after or self._before.layout is not layout:
            self._before = _Packed(layout, self._free_lanes(layout))
        self._before.index = -1
        self.reader.pack(layout, tensors, self._before.flat)
        self._before.index = self.count
        if after is not None:
            self._changed = changed_tensors(layout, self._before.flat, after.layout, after.flat)
        elif self._resumed_after is not None:
            self._changed = self._changed_in_resuming(layout, self._before.flat)

    def _free_lanes(self, layout: Layout) -> dict[str, Tensor]:
        return layout.empty() if self._writer is None else self._writer.take_buffers(layout)

    def _changed_in_resuming(self, layout: Layout, flat: dict[str, Tensor]) -> tuple[str, ...]:
        """Labels of the tensors that are not what they were when the checkpoint was saved."""
        assert self._resumed_after is not None
        if not self._leads:
            return ()
        changed = differing(tensor_checksums(layout, flat), self._resumed_after.tensors)
        if changed:
            self._remark(
                f"{', '.join(changed[:5])} {'are' if len(changed) > 1 else 'is'} not what the log has at step "
                f"{self.count}: the checkpoint does not restore it, or something changed it since"
            )
        return changed

    def _before_step(self) -> None:
        self._evaluated = False
        if not self._automatic and self._before is None:  # a second step within one manual training_step
            self._open_step()
            self._micro = [self._current] if self._current is not None else []

    def _after_step(self, groups: tuple[ParamGroup, ...]) -> None:
        if self._before is None or not has_gradients(self._optimizer):
            return
        if self._automatic and self._backwards == 0:
            # Stochastic weight averaging does this after its last epoch, if nothing has set the gradients to None by
            # then.
            self._remark(
                f"after step {self.count - 1} the optimizer stepped on gradients left over from before, without a "
                "backward pass; that step is not recorded"
            )
            return
        trainer = self._trainer
        step = Step(
            index=self.count,
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            micro_batches=tuple(self._micro),
            groups=groups,
            accumulation=trainer.accumulate_grad_batches if self._automatic else 1,
            clip=self._clip,
            eval_modules=self._eval_modules,
            loss=float(self._loss) if self._loss is not None and self._loss.numel() == 1 else None,
            changed=self._changed,
        )
        if self._writer is not None:
            self._hand_over(self._writer)  # a step without a backward pass
        self._take_after()
        if self._writer is None:
            self._writer = self._open_writer(self)
        self._pending = step, self._before
        self.count += 1
        self._before = None
        self._watch_finite(step)
        if not self._leads:
            self._hand_over(self._writer)

    def _take_after(self) -> None:
        layout, tensors = self.reader.read()
        if self._after is None or self._after is self._before or self._after.layout is not layout:
            self._after = _Packed(layout, self._free_lanes(layout))
        self._after.index = -1
        self.reader.pack(layout, tensors, self._after.flat)
        self._after.index = self.count + 1

    def _hand_over(self, writer: Writer) -> None:
        if self._pending is not None:
            step, packed = self._pending
            store = self._leads and self.keep.stores(step.index, step.epoch, self._max_epochs)
            writer.put(step, packed.layout, packed.flat, store=store)
            self._written = step.index + 1
            self._pending = None

    def _watch_finite(self, step: Step) -> None:
        if self._not_finite or self._after is None:
            return
        what = "loss" if step.loss is not None and not math.isfinite(step.loss) else ""
        if not what and not self.reader.finite(self._after.flat):
            what = "a parameter"
        if what:
            self._not_finite = True
            self._problem(f"{what} is not finite after step {step.index} (epoch {step.epoch})")

    def _constant_digests(self) -> dict[str, int]:
        return {name: batch_digest(value) for name, value in self.reader.constants.items()}
