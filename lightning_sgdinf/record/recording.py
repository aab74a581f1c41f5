"""One run on its way into a log.

`StateTracker` follows the states, `StepAssembler` puts the steps together, `StepDelivery` hands both to the writer; a
`Recording` tells them of the steps that the optimizer really takes.

Of several processes all record their batches, and process 0 the states; see `lightning_sgdinf.record.ranks`.

An exception may come between any two instructions, as ``KeyboardInterrupt`` does. A step that the optimizer has taken
and whose recording was interrupted is recorded when the recording is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.errors import LogWriteError, UnsupportedRunError
from lightning_sgdinf.log import Draw, Json
from lightning_sgdinf.record.compatibility import SEVERAL_EVALUATIONS, foreign_parameters, impossible_optimizers
from lightning_sgdinf.record.constant_watch import ConstantWatch
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.keep import Keep
from lightning_sgdinf.record.movements import Movements
from lightning_sgdinf.record.optimizer_steps import OptimizerSteps, gradients_of, without_gradient
from lightning_sgdinf.record.random_watch import RandomWatch
from lightning_sgdinf.record.resume import Bookmark, tensor_checksums
from lightning_sgdinf.record.run_checks import FiniteWatch
from lightning_sgdinf.record.state_reader import StateReader
from lightning_sgdinf.record.state_tracker import StateTracker
from lightning_sgdinf.record.step_assembler import StepAssembler
from lightning_sgdinf.record.step_delivery import StepDelivery
from lightning_sgdinf.record.writer import Writer


class Recording:
    """Records the steps of an optimizer.

    Args:
        trainer: Training is about to begin.
        module: The LightningModule.
        keep: Policy by which states are stored.
        watch: Reads the random states of this process.
        open_writer: Called at the end of the first step with this recording; makes the log.
        guard: Runs what the optimizer's hooks call.
        problem: Called with a sentence when something makes the run impossible to replay.
        remark: Called with a sentence about something to know.
        known: Names of frozen parameters that were told to move.
        after: Bookmark of the steps that the log has, if it is continued.

    Attributes:
        reader: Reads the state of the module and its optimizer.
        constants: What nothing trains.
        optimizer_steps: The steps of the optimizer.
        states: The states before and after the step under way.
        assembler: The step under way.
        delivery: The step that waits, and the writer.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        *,
        keep: Keep,
        watch: RandomWatch,
        open_writer: Callable[[Recording], Writer],
        guard: Guard,
        problem: Callable[[str], None],
        remark: Callable[[str], None],
        known: Container[str] = (),
        after: Bookmark | None = None,
    ) -> None:
        self._trainer = trainer
        self._automatic = bool(module.automatic_optimization)
        self._leads = trainer.global_rank == 0
        self._open_writer = open_writer
        self._problem = problem
        self._taken: int | None = None  # number of a step whose recording has begun
        self._evaluated = False  # the loss of the step under way
        self.reader = StateReader(module, trainer.optimizers[0], takes_states=self._leads)
        if after is not None:
            self.reader.include(after.parameters)
        self._movements = Movements(known, problem=problem, remark=remark)
        self.constants = ConstantWatch(module, self.reader.params)
        self._finite = FiniteWatch(self.reader, problem)
        self.delivery = StepDelivery(
            keep=keep,
            max_epochs=trainer.max_epochs if trainer.max_epochs is not None else -1,
            steps=0 if after is None else after.steps,
            takes_states=self._leads,
            remark=remark,
        )
        self.states = StateTracker(
            self.reader, take_buffers=self.delivery.take_buffers, resumed_after=after, remark=remark
        )
        self.assembler = StepAssembler(trainer, automatic=self._automatic, watch=watch)
        self.optimizer_steps = OptimizerSteps(
            trainer.optimizers[0],
            guard=guard,
            names=self.reader.present_names,
            before=self._before_step,
            after=self._after_step,
        )

    def begin_micro_batch(
        self,
        batch_idx: int,
        draws: tuple[Draw, ...],
        transferred_with: dict[str, bytes],
        attributes: Mapping[str, Json],
    ) -> None:
        """Record a batch that is about to go through ``training_step``.

        Raises:
            UnsupportedRunError: Another optimizer trains than the one that is recorded.
        """
        if self._trainer.optimizers[:1] != [self.optimizer_steps.optimizer]:
            _change_optimizer(self)
        if self.optimizer_steps.running and self._automatic:
            if self._evaluated:
                self._problem(SEVERAL_EVALUATIONS)
                return
            self._evaluated = True
        # The Trainer zeroes gradients at these batches: whatever came before and led to no step is forgotten.
        if self.states.before is None or (self._automatic and batch_idx % self._trainer.accumulate_grad_batches == 0):
            self._begin_step()
        self.assembler.begin_micro_batch(batch_idx, draws, transferred_with, attributes)

    def bookmark(self, run_id: str, path: Path, *, complete: bool) -> Bookmark | None:
        """Return where the log stands, after making sure that it will stand there whatever happens to the process.

        Args:
            run_id: Of the log.
            path: Of the log.
            complete: See `StepDelivery.flush`.

        Raises:
            LogWriteError: From the writer.
        """
        if not self.delivery.is_open or not self._leads:
            return None
        last = self.delivery.flush(complete=complete)
        if self.delivery.stopped:  # just now, or before
            raise LogWriteError(self.delivery.stopped)
        steps = self.delivery.steps
        # The recorded state, not that of the module, which a signal's handler may find between two states.
        state = self.states.state(steps)
        return Bookmark(
            run_id=run_id,
            path=str(path.absolute()),
            steps=steps,
            last=last,
            tensors={} if state is None else tensor_checksums(state.layout, state.flat),
        )

    def finish_step(self) -> None:
        """Record the step whose recording was interrupted, if one was and somebody caught that; none is under way."""
        self.optimizer_steps.forget()
        if self._taken is not None:
            with suppress(Exception):  # if that is impossible, the record ends with the step before
                self._record_step(self._taken)
            self._taken = None

    def close(self, reason: str, average: Mapping[str, Tensor] | None) -> None:
        """Write what is complete, the final state, and the end. Nothing is there if no step was taken. Can be begun
        again after an interrupt.

        Raises:
            LogWriteError: From the writer.
        """
        self.optimizer_steps.remove()
        self.finish_step()
        self.delivery.close(reason, self.states.state, average)

    def check_constants(self) -> None:
        """Check that what nothing trains has stayed what it was; the next step will name what has not."""
        if (moved := self.constants.look()) and self.delivery.steps:
            self._movements.of_constants(moved, self.delivery.steps)

    def _begin_step(self) -> None:
        index = self.delivery.steps
        changed = self.states.begin_step(index)
        joined = self.constants.join(self.reader.params)
        # The second look is at everything: what follows the model moves with the first step.
        moved = self.constants.moved(thorough=index == 1)
        if moved and index:
            self._movements.of_constants(moved, index)
            self.reader.include(moved)
            changed = self.states.begin_step(index)
            joined |= dict.fromkeys(self.constants.join(self.reader.params), False)
            changed += tuple(f"buffer {name}" for name in moved if name not in self.reader.params)
        if joined and index:
            self.delivery.keep_state(index)  # what it was before is known by this state alone
            unmoved = {f"param {name}" for name, same in joined.items() if same}
            changed = tuple(label for label in changed if label not in unmoved)
        self.assembler.begin(changed=changed, eval_modules=self.reader.eval_modules())

    def _before_step(self) -> None:
        self._evaluated = False
        if not self._automatic and self.states.before is None:  # a second step within one manual training_step
            self._begin_step()
            self.assembler.repeat_micro_batch()

    def _after_step(self) -> None:
        self._taken = self.delivery.steps
        try:
            self._record_step(self._taken)
        except Exception:  # an error of ours, not an interrupt: to try again would raise it again
            self._taken = None
            raise

    def _record_step(self, index: int) -> None:
        """Record step ``index``, which was just taken, or what an interrupt has left of that."""
        delivery, states = self.delivery, self.states
        if delivery.steps == index and states.before is not None and _counts(self):
            if self.reader.foreign:
                self._problem(foreign_parameters(self.reader.foreign))
            idle = without_gradient(self.optimizer_steps.optimizer, self.reader.present_names())
            step = self.assembler.assemble(index, self.optimizer_steps.used_groups(), idle)
            delivery.hand_over()  # a step without a backward pass
            self._movements.of_trained(step)
            if states.state(index + 1) is None:
                states.take_after(index + 1)
            if not delivery.is_open:
                delivery.open(self._open_writer(self))
            delivery.add(step, states.before)
            states.before = None
            self._finite.check(step, states.after)
        elif delivery.steps > index:
            states.before = None
        if not self._leads:
            delivery.hand_over()
        self._taken = None


def _change_optimizer(recording: Recording) -> None:
    """Go on with the optimizer that has come in the place of the recorded one."""
    reason, present = impossible_optimizers(recording._trainer), recording._trainer.optimizers
    if not reason and type(present[0]) is not type(recording.optimizer_steps.optimizer):
        reason = f"it is a {type(present[0]).__qualname__} now, and a log is of one kind of optimizer"
    if reason:
        raise UnsupportedRunError(
            f"the optimizer was replaced before step {recording.delivery.steps}: {reason}. To record what "
            "follows, train it in a fit of its own"
        )
    recording._movements.remark(
        f"the optimizer was replaced by another one of its class before step {recording.delivery.steps}; "
        "recording goes on with it"
    )
    recording.optimizer_steps.follow(present[0])
    recording.reader.use(present[0])


def _counts(recording: Recording) -> bool:
    """Tell if the step that was just taken is one to record."""
    gradients = gradients_of(recording.optimizer_steps.optimizer)
    if not gradients:
        return False
    if recording._automatic and recording.assembler.backward_passes == 0 and any(map(_is_some, gradients)):
        # Stochastic weight averaging does this after its last epoch, if nothing has set the gradients to None by
        # then. Zeros are what set_to_none=False leaves of a batch without a loss, and such a step is one.
        recording._movements.remark(
            f"after step {recording.delivery.steps - 1} the optimizer stepped on gradients left over from before, "
            "without a backward pass; that step is not recorded"
        )
        return False
    return True


def _is_some(gradient: Tensor) -> bool:
    """Tell if a gradient is anything but zero."""
    return bool((gradient.to_dense() if gradient.layout is not torch.strided else gradient).any())
