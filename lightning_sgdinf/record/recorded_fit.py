"""One fit of a Trainer that is being recorded, from its set-up to its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log import Json
from lightning_sgdinf.record import compatibility
from lightning_sgdinf.record.attributes import AttributeWatch
from lightning_sgdinf.record.averaging import AveragingWatch
from lightning_sgdinf.record.budget import Budget, make_plan
from lightning_sgdinf.record.budgeted_keep import BudgetedKeep, prospect_of, remaining_steps
from lightning_sgdinf.record.diagnostics import Diagnostics
from lightning_sgdinf.record.follower_watch import FollowerWatch
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.header import expected_steps, make_header
from lightning_sgdinf.record.keep import Every, Keep
from lightning_sgdinf.record.loaders import LoaderTap
from lightning_sgdinf.record.log_location import LogLocation
from lightning_sgdinf.record.operation_watch import OperationWatch
from lightning_sgdinf.record.patches import Patches
from lightning_sgdinf.record.random_watch import RandomWatch
from lightning_sgdinf.record.ranks import Collector, Mailbox, Sender, agreed
from lightning_sgdinf.record.recording import Recording
from lightning_sgdinf.record.resume import DATA, Bookmark
from lightning_sgdinf.record.state_tracker import StateTracker
from lightning_sgdinf.record.stored_batches import BatchStore, ExampleKey
from lightning_sgdinf.record.trainer_tap import TrainerTap
from lightning_sgdinf.record.validation_watch import ValidationWatch
from lightning_sgdinf.record.writer import NoWriter, Writer

COMPLETED = "completed"
"""The reason of the end of a fit that nothing broke off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of a recorder, see `TrajectoryRecorder`; ``codec`` and ``when_full`` are the writer's.

    Attributes:
        keep: Policy by which states are stored, or a budget.
        store_batches: Keep every batch in the log.
        example_key: Names the examples of a batch, if the user does.
        digest_batches: Note a checksum of each batch.
        strict: Raise where a run cannot be replayed.
        make_writer: Makes the log.
        codec: Of the states.
        when_full: Reaction to a full disk.
    """

    keep: Keep | Budget
    store_batches: bool
    example_key: ExampleKey | None
    digest_batches: bool
    strict: bool
    make_writer: Callable[..., Writer]
    codec: str
    when_full: str


class Watches(NamedTuple):
    """The watches of a module: of attributes that hooks set, and of its validation passes."""

    attributes: AttributeWatch
    validation: ValidationWatch


class RecordedFit:
    """Taps the loaders of a fit, chooses its log, and ends it.

    Args:
        settings: Of the recorder.
        location: Finds the place of the log.
        diagnostics: Of this fit.
        guard: Runs what the Trainer's methods call.
        trainer: About to fit.
        module: The LightningModule.
        patches: Holds what is done to the Trainer's plugins; whoever owns it undoes it.

    Attributes:
        tap: Of the Trainer's methods around a training step.
        watches: Of the module.
        end: Bookmark of the end, once the recording has ended with a step in the log.

    Raises:
        UnsupportedRunError: The loaders cannot be recorded, and the recorder is strict.
    """

    def __init__(
        self,
        settings: Settings,
        location: LogLocation,
        diagnostics: Diagnostics,
        guard: Guard,
        trainer: Any,
        module: Any,
        patches: Patches,
    ) -> None:
        self._settings, self._location, self._diagnostics, self._guard = settings, location, diagnostics, guard
        self._trainer, self._module = trainer, module
        self._patches = patches
        self._mailbox: Mailbox | None = None
        self._averaging: AveragingWatch | None = None
        self.end: Bookmark | None = None
        problem = diagnostics.problem
        store = BatchStore(settings.example_key, problem) if settings.store_batches else None
        self._loaders = LoaderTap(
            digest=settings.digest_batches,
            watch=RandomWatch(),
            guard=guard,
            problem=problem,
            remark=diagnostics.remark,
            store=store,
        )
        self.watches = Watches(AttributeWatch(module), ValidationWatch(trainer, module, guard, patches))
        looks = OperationWatch(diagnostics.remark), FollowerWatch(module, diagnostics.remark)
        self.tap = TrainerTap(guard, self._loaders, self.watches.attributes, *looks)
        self._writer: Writer | None = None
        self._ended: StateTracker | None = None  # the states of the recording that has ended
        guard.stop = self.stop
        self._loaders.install(trainer, module, patches)
        self.tap.install(trainer, patches)

    @property
    def recording(self) -> Recording | None:
        """The recording, from the beginning of the training to its end."""
        return self.tap.recording

    @property
    def loaders(self) -> tuple[Any, ...]:
        """The training loaders as the Trainer prepared them."""
        return self._loaders.originals()

    def choose_log(self) -> None:
        """Choose the log of the fit: a new one, or the one that it goes on in.

        Raises:
            LogExistsError: The path is taken.
            ResumeError: The log cannot be continued where the checkpoint stands.
            LogLockedError: Another process is writing the log.
        """
        location = self._location
        location.take(*agreed(self._trainer, partial(location.find, self._trainer, self._module)))
        if advice := compatibility.advice_on_location(location.path):
            self._diagnostics.remark(advice)
        if location.continued is not None and self._loaders.store is not None:
            self._loaders.store.numbered = location.continued.bookmark.numbered

    def begin(self) -> None:
        """Begin the recording.

        Raises:
            UnsupportedRunError: The optimizers cannot be recorded or replayed, and the recorder is strict.
        """
        trainer, module, diagnostics, keep = self._trainer, self._module, self._diagnostics, self._settings.keep
        if reason := compatibility.impossible_optimizers(trainer) or compatibility.impossible_tensors(module):
            diagnostics.nothing_recorded(reason)
            return
        if trainer.world_size > 1:
            self._mailbox = Mailbox.of(trainer)
        continued = self._location.continued
        self.tap.recording = recording = Recording(
            trainer,
            module,
            keep=Every() if isinstance(keep, Budget) else keep,  # a budget is planned after the first step
            watch=self._loaders.watch,
            open_writer=self._open_log,
            guard=self._guard,
            problem=diagnostics.problem,
            remark=diagnostics.remark,
            known=self.tap.followers.names,
            after=None if continued is None else continued.bookmark,
        )
        recording.optimizer_steps.attach()
        for reason in (
            *compatibility.impossible_to_replay(module, trainer.optimizers[0], recording.reader),
            *compatibility.impossible_to_replay_processes(trainer, module),
        ):
            diagnostics.problem(reason)
        self._averaging = AveragingWatch(
            trainer,
            self._patches,
            guard=self._guard,
            updated=recording.delivery.add_average,
            remark=diagnostics.remark,
        )

    def bookmark(self, recording: Recording) -> Bookmark | None:
        """Return where the log stands.

        Raises:
            LogWriteError: From the writer.
        """
        # Callbacks average after steps, and once more after epochs.
        complete = not (_averages(self._averaging) and self._trainer.is_last_batch)
        bookmark = recording.bookmark(self._location.run_id, self._location.path, complete=complete)
        if bookmark is None or self._loaders.store is None:
            return bookmark
        return replace(bookmark, numbered=self._loaders.store.numbered)

    def close(self, reason: str) -> None:
        """End the recording, if there is one. Can be begun again after an interrupt.

        Raises:
            LogWriteError: From the writer.
        """
        recording = self.recording
        if recording is None:
            return
        try:
            recording.finish_step()
            with suppress(LogWriteError):  # closing will raise it
                self.end = self.bookmark(recording)
            if reason == COMPLETED:
                self._ended = recording.states
                self.look_back()
            average = None
            if self._averaging is not None and recording.delivery.average_is_known:
                average = self._averaging.average(recording.reader.params)
            recording.close(self._diagnostics.end_reason(reason), average)
        except Exception:
            self.tap.recording = None
            raise
        self.tap.recording = None  # not before: an interrupt may come in between, and it is closed again

    def stop(self, reason: str) -> None:
        """End the recording where it is: what is complete stays."""
        reason = self._diagnostics.end_reason(f"recording stopped: {reason}")
        recording, self.tap.recording = self.tap.recording, None
        if recording is not None:
            begun = recording.delivery.is_open
            recording.close(reason, None)
            if not begun and self._writer is not None:  # it was opened and never got a step
                self._writer.abandon(reason)

    def look_back(self) -> None:
        """Tell, when the recording has ended, if the model is not what the last step led to; averages never are."""
        if self._ended is None or _averages(self._averaging):
            return
        if edited := self._ended.edited():
            self._ended = None
            self._diagnostics.remark(
                f"something other than the optimizer changed {', '.join(edited[:5])} after the last step. The record "
                "ends with what the last step led to, and scores are about that model, not about the one that the fit "
                "left"
            )

    def _open_log(self, recording: Recording) -> Writer:
        """Return the writer of the log, which is made when the first step is complete."""
        if self._writer is None:
            try:
                self._writer = self._make_log(recording)
            except LogWriteError as error:
                if self._settings.when_full != "stop_logging":
                    raise
                self._writer = NoWriter(str(error))
                rank_zero_warn(f"{error}; training goes on without a log")
        return self._writer

    def _make_log(self, recording: Recording) -> Writer:
        trainer, settings, location = self._trainer, self._settings, self._location
        if recording.reader.unreadable:
            self._diagnostics.problem(
                f"the optimizer keeps {', '.join(sorted(recording.reader.unreadable))}, which are neither numbers "
                "nor dense tensors, so its state cannot be recorded. Use an optimizer that keeps dense tensors; sparse "
                "gradients work with SparseAdam, Adagrad, or SGD without momentum"
            )
        extra = _notes(recording, settings, averaging=self._averaging.kind if self._averaging is not None else "")
        replayable, remarks = self._diagnostics.take_for_header()
        device = str(trainer.strategy.root_device)
        if self._mailbox is not None and self._mailbox.rank:
            self._guard.begun = True
            return Sender(self._mailbox, device)
        extra[DATA] = self._loaders.data.first
        if remarks:
            extra["remarks"] = [*remarks]
        budget = settings.keep if isinstance(settings.keep, Budget) else None
        prospect = prospect_of(
            trainer,
            state_bytes=recording.states.state_bytes,
            micro_batches=recording.assembler.micro_batches,
            codec=settings.codec,
            averaged=_averages(self._averaging),
        )
        if budget is not None:
            plan = make_plan(budget, prospect)
            rank_zero_info(f"TrajectoryRecorder: {plan.sentence(budget)}.")
            extra["budget"] = plan.document()
        header = make_header(
            trainer,
            self._module,
            reader=recording.reader,
            constants=tuple(recording.constants.constants.values()),
            keep=settings.keep,
            datasets=self._loaders.describe(),
            replayable=replayable,
            extra=extra,
        )
        steps = recording.delivery.steps
        self._writer = writer = location.open(
            settings.make_writer,
            header,
            steps,
            expected_steps=expected_steps(trainer, steps),
            codec=settings.codec,
            when_full=settings.when_full,
        )
        if budget is not None:
            recording.delivery.keep = BudgetedKeep(
                budget,
                prospect,
                measure=writer.sizes,
                remaining=lambda seconds: remaining_steps(trainer, seconds),
                inform=lambda sentence: rank_zero_info(f"TrajectoryRecorder: {sentence}."),
            )
        self._guard.begun = True
        return writer if self._mailbox is None else Collector(writer, self._mailbox, device)


def _averages(averaging: AveragingWatch | None) -> bool:
    return averaging is not None and bool(averaging.kind)


def _notes(recording: Recording, settings: Settings, *, averaging: str) -> dict[str, Json]:
    """Return what the header says of the optimizer, the average and the batches."""
    steps, average_before = recording.optimizer_steps, recording.delivery.average_before
    notes: dict[str, Json] = {"opaque_options": [*sorted(steps.opaque)]}
    if steps.other_hooks:
        notes["optimizer_hooks"] = steps.other_hooks
    if averaging:
        notes["averaging"] = averaging
    if settings.store_batches:
        notes |= {"stores_batches": True, "example_key": settings.example_key is not None}
    if average_before is not None:
        notes["average_before_first_step"] = [*average_before]
    return notes
