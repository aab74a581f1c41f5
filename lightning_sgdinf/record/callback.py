"""The callback that records a training run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_sgdinf.errors import ConfigurationError, LogWriteError, SgdInfluenceError
from lightning_sgdinf.log import LogWriter
from lightning_sgdinf.log.codecs import check_codec
from lightning_sgdinf.log.records import Clip
from lightning_sgdinf.record import compatibility
from lightning_sgdinf.record.averaging import AveragingWatch
from lightning_sgdinf.record.budget import Budget, make_plan
from lightning_sgdinf.record.budgeted_keep import BudgetedKeep, prospect_of, remaining_steps
from lightning_sgdinf.record.diagnostics import Diagnostics
from lightning_sgdinf.record.header import expected_steps, make_header
from lightning_sgdinf.record.loaders import LoaderTap
from lightning_sgdinf.record.log_location import LogLocation
from lightning_sgdinf.record.patches import Patches
from lightning_sgdinf.record.random_watch import RandomWatch
from lightning_sgdinf.record.ranks import Collector, Mailbox, Sender, agreed
from lightning_sgdinf.record.recording import Recording, Writer
from lightning_sgdinf.record.resume import Bookmark, bookmarks_of
from lightning_sgdinf.record.snapshots import Every, Keep, parse_keep
from lightning_sgdinf.record.stored_batches import BatchStore, ExampleKey


class TrajectoryRecorder(Callback):
    """Records a training run, so that it can be explained afterwards.

    Trained weights, random streams, logged metrics and checkpoints are bit for bit those of a run without it. Module,
    data module, data sets and samplers need no change.

    The log appears with the first optimizer step. A run that breaks off leaves a readable log up to its last complete
    step. A second ``fit`` with the same recorder writes its own log beside the first, ``run.tlog``, ``run-2.tlog``,
    ...; `path` is the present one. Nothing is recorded of ``fast_dev_run`` and of learning-rate or batch-size searches.

    Checkpoints note how far the log is, and it is made sure that the log does not fall behind them. So a fit that is
    resumed from a checkpoint, ``fit(..., ckpt_path=...)``, in the middle of an epoch or with more epochs than before,
    goes on in the log it began: what was recorded after the checkpoint was saved is dropped.

    Example ids are indices into the data set of the training loader; for a ``Subset`` they are positions in the subset.

    Runs of several processes (DDP) have one log: process 0 writes it, and the others send it what they fed into each
    step. BatchNorm's statistics are those of process 0, as in its checkpoints.

    Args:
        path: Directory to write the log to; by convention it ends in ``.tlog``.
        keep: Which states are stored: ``"every_step"``, ``"every(k)"`` (``1/k`` of the bytes; the others are computed
            again), ``"last_epochs(n)"``, ``"final"``, or a `Keep` of your own. Of the others the log has checksums.
            ``"budget:2GB"`` stores as many as fit: all of them, every ``k``-th, or those of the last epochs. It says
            what it chose and what replay will cost, and changes ``k`` when the run or its states turn out larger.
        codec: How states are compressed, see `lightning_sgdinf.log.LogWriter`.
        overwrite: Replace a log that is at ``path``.
        resume: When a fit is resumed from a checkpoint: ``"auto"`` goes on in the checkpoint's log if it is at
            ``path``, and otherwise warns and begins a new one with the present step; ``"require"`` raises instead of
            warning; ``"never"`` always begins a new log.
        when_full: What to do when the disk is full: ``"raise"``, or ``"stop_logging"`` and train on.
        store_batches: Keep every batch in the log, compressed, as it came from the loader. Needed for data that cannot
            be made again: an ``IterableDataset``, random numbers that are not those of torch's, numpy's or python's
            global generators. Replay then needs no training loader. Batches are tensors, arrays, numbers, strings, and
            lists, tuples and dicts of them. Where the loader has no indices, the ids of examples are running numbers,
            and the examples of a batch as many as the rows of its first tensor.
        example_key: With ``store_batches``, called with each batch in the training process: says which examples it
            holds, as integers ``[B]`` from 0 on. So an example that a stream brings again is known again. Scores are in
            the order of the keys.
        digest_batches: Note a checksum of each batch, so that replay notices changed data; about 1 ms per 3 MB of
            batch.
        strict: Raise before the first step is complete if the run cannot be replayed (iterable data sets, manual
            optimization, several optimizers ...). Otherwise warn, record what can be recorded, and say in the log why
            it cannot be replayed.
        writer: Makes the log, called as ``writer(path, header=, codec=, when_full=, expected_steps=)`` and either
            ``overwrite=`` or ``continue_at=``; a `LogWriter` if ``None``.

    Raises:
        ConfigurationError: If ``keep``, ``codec`` or ``resume`` is unknown, or ``example_key`` is given without
            ``store_batches``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: str | Keep | Budget = "every_step",
        codec: str = "delta",
        overwrite: bool = False,
        resume: Literal["auto", "require", "never"] = "auto",
        when_full: Literal["raise", "stop_logging"] = "raise",
        store_batches: bool = False,
        example_key: ExampleKey | None = None,
        digest_batches: bool = True,
        strict: bool = True,
        writer: Callable[..., Writer] | None = None,
    ) -> None:
        check_codec(codec)
        self._place = LogLocation(Path(path), overwrite=overwrite, resume=resume)
        self._keep = parse_keep(keep)
        self._writer_options = {"codec": codec, "when_full": when_full}
        if example_key is not None and not store_batches:
            raise ConfigurationError(
                "example_key= names the examples of batches that are kept in the log; pass store_batches=True with it"
            )
        self._stores_batches, self._example_key = store_batches, example_key
        self._digest = digest_batches
        self._strict = strict
        self._writer: Callable[..., Writer] = writer or LogWriter
        self._patches = Patches()
        self._watch = RandomWatch()
        self._diagnostics = Diagnostics(strict=strict)
        self._recording: Recording | None = None
        self._averaging: AveragingWatch | None = None
        self._tap: LoaderTap | None = None
        self._store: BatchStore | None = None
        self._mailbox: Mailbox | None = None
        self._batch_idx = 0
        self._chosen = False
        self._loaded: tuple[Bookmark, ...] | None = None  # of the checkpoint that the fit starts from, if it does
        self._bookmark: Bookmark | None = None  # of the end of the last fit

    @property
    def path(self) -> Path:
        """Where the present log is, or the coming one is wanted."""
        return self._place.path

    @property
    def loaders(self) -> tuple[Any, ...]:
        """The training loaders of the present fit, as the Trainer prepared them; empty when there is none."""
        return () if self._tap is None else self._tap.originals()

    @property
    def recorded(self) -> bool:
        """Whether the last fit that has ended left a step in the log."""
        return self._bookmark is not None

    # Before training -------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look whether the coming fit can be recorded, and tap its loaders.

        Raises:
            UnsupportedRunError: If it cannot, and the recorder is strict.
            ConfigurationError: If ``keep`` cannot work with the Trainer's settings.
        """
        self._release(trainer)
        if stage != "fit" or compatibility.is_tuner_search(trainer):
            return
        self._chosen, self._loaded, self._bookmark = False, None, None
        if trainer.fast_dev_run:
            rank_zero_info("TrajectoryRecorder: nothing is recorded with fast_dev_run.")
            return
        self._diagnostics = Diagnostics(strict=self._strict)
        if reason := compatibility.impossible_to_record(trainer):
            self._diagnostics.nothing_recorded(reason)
            return
        compatibility.check_keep(self._keep, trainer.max_epochs)
        if self._strict and not pl_module.automatic_optimization:  # others hear of it when all is known
            self._diagnostics.problem(compatibility.MANUAL_OPTIMIZATION)
        problem = self._diagnostics.problem
        self._store = BatchStore(self._example_key, problem) if self._stores_batches else None
        self._tap = LoaderTap(digest=self._digest, watch=self._watch, problem=problem, store=self._store)
        self._tap.install(trainer, pl_module, self._patches)
        self._patches.place(trainer.strategy, "training_step", self._around_training_step)
        self._patches.place(trainer.precision_plugin, "clip_gradients", self._around_clipping)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Look where in a log the checkpoint stands that the fit starts from; searches load some of their own."""
        if not compatibility.is_of_search(trainer.ckpt_path):
            self._loaded = bookmarks_of(checkpoint)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Choose where to record, before anything takes long.

        Raises:
            LogExistsError: If the path is taken.
            ResumeError: If the log cannot be continued where the checkpoint stands.
            LogLockedError: If another process is writing the log.
        """
        if self._tap is not None and not trainer.strategy.restore_checkpoint_after_setup:
            self._choose_log(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the recording; searches that run inside a fit never come here.

        Raises:
            UnsupportedRunError: If the optimizers cannot be recorded or replayed, and the recorder is strict.
        """
        if self._tap is None:
            return
        if not self._chosen:
            self._choose_log(trainer)
        if reason := compatibility.impossible_optimizers(trainer):
            self._diagnostics.nothing_recorded(reason)
            return
        if trainer.world_size > 1:
            self._mailbox = Mailbox.of(trainer)
        recording = Recording(
            trainer,
            pl_module,
            keep=Every() if isinstance(self._keep, Budget) else self._keep,  # a budget is planned after the first step
            watch=self._watch,
            open_writer=lambda recording: self._open(trainer, pl_module, recording),
            problem=self._diagnostics.problem,
            remark=self._diagnostics.remark,
            after=None if self._place.continued is None else self._place.continued.bookmark,
        )
        self._recording = recording
        for reason in (
            *compatibility.impossible_to_replay(pl_module, trainer.optimizers[0], recording.reader),
            *compatibility.impossible_to_replay_processes(trainer, pl_module),
        ):
            self._diagnostics.problem(reason)
        self._averaging = AveragingWatch(
            trainer, self._patches, updated=recording.averaged, remark=self._diagnostics.remark
        )

    # Training --------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Callbacks may unfreeze layers or swap tensors now."""
        if self._recording is not None:
            self._recording.epoch_begins()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the index: ``training_step`` need not be given it."""
        self._batch_idx = batch_idx

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The writer has the interpreter for itself now, mostly."""
        if self._recording is not None:
            self._recording.backward_begins()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Count real backward passes."""
        if self._recording is not None:
            self._recording.backward_done()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Check what should have stayed constant."""
        if self._recording is not None:
            self._recording.epoch_ends()

    def _around_training_step(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        def recorded_training_step(*args: Any, **kwargs: Any) -> Any:
            recording, tap = self._recording, self._tap
            if recording is None or tap is None:
                return training_step(*args, **kwargs)
            draws, transferred_with = tap.take()
            recording.micro_batch_begins(self._batch_idx, draws, transferred_with)
            output = training_step(*args, **kwargs)
            recording.micro_batch_ends(output, tap.take_fetched())
            return output

        return recorded_training_step

    def _around_clipping(self, clip_gradients: Callable[..., None]) -> Callable[..., None]:
        def recorded_clip_gradients(
            optimizer: Any, clip_val: float = 0.0, gradient_clip_algorithm: Any = "norm"
        ) -> None:
            if self._recording is not None and clip_val is not None and clip_val > 0:
                algorithm = str(getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm))
                self._recording.clipped(Clip(float(clip_val), "value" if algorithm == "value" else "norm"))
            clip_gradients(optimizer, clip_val, gradient_clip_algorithm)

        return recorded_clip_gradients

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note in the checkpoint how far the log is; after the fit, how far it came."""
        bookmark = self._bookmark
        if self._recording is not None:
            try:
                bookmark = self._make_bookmark(trainer, self._recording)
            except LogWriteError as error:  # the next step will raise it; the checkpoint shall not be lost with the log
                rank_zero_warn(f"the checkpoint is saved without a bookmark of {self.path}: {error}")
        if bookmark is not None:
            bookmark.put_into(checkpoint)

    # The end ---------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the log.

        Raises:
            LogWriteError: From the writer.
        """
        self._close(trainer, "completed")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep what is complete; the exception goes on its way."""
        try:
            self._close(trainer, f"exception: {type(exception).__name__}: {exception}".rstrip(": "))
        except SgdInfluenceError as error:
            rank_zero_warn(f"{self.path} could not be finished: {error}")
        finally:
            self._release(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave Trainer and optimizer as they were found."""
        self._release(trainer)

    def _close(self, trainer: Any, reason: str) -> None:
        recording, self._recording = self._recording, None
        if recording is None:
            return
        with suppress(LogWriteError):  # closing will raise it
            self._bookmark = self._make_bookmark(trainer, recording)
        average = None
        if self._averaging is not None and recording.average_is_known:
            average = self._averaging.average(recording.reader.params)
        recording.close(self._diagnostics.end_reason(reason), average)

    def _release(self, trainer: Any) -> None:
        try:
            self._close(trainer, "stopped")
        finally:
            self._patches.undo()
            self._averaging = None
            self._tap = None
            self._mailbox = None

    # The log ---------------------------------------------------------------------------------------------------

    def _make_bookmark(self, trainer: Any, recording: Recording) -> Bookmark | None:
        averages = self._averaging is not None and bool(self._averaging.kind)
        complete = not (averages and trainer.is_last_batch)  # callbacks average after steps, and once more after epochs
        bookmark = recording.bookmark(self._place.run_id, self.path, complete=complete)
        if bookmark is None or self._store is None:
            return bookmark
        return replace(bookmark, numbered=self._store.numbered)

    def _choose_log(self, trainer: Any) -> None:
        """Where the coming fit is recorded, and whether it goes on there."""
        place, loaded = self._place, self._loaded
        place.take(*agreed(trainer, lambda: place.find(loaded)))
        self._chosen = True
        if advice := compatibility.advice_on_place(place.path):
            self._diagnostics.remark(advice)
        if place.continued is not None and self._store is not None:
            self._store.numbered = place.continued.bookmark.numbered

    def _open(self, trainer: Any, module: Any, recording: Recording) -> Writer:
        """The log, made when the first step is complete."""
        assert self._tap is not None
        assert self._averaging is not None
        if recording.reader.unreadable:
            self._diagnostics.problem(
                f"the optimizer keeps {', '.join(sorted(recording.reader.unreadable))}, which are neither tensors nor "
                "numbers, so its state cannot be recorded. Use an optimizer that keeps tensors"
            )
        extra: dict[str, Any] = {"opaque_options": sorted(recording.steps.opaque)}
        if recording.steps.other_hooks:
            extra["optimizer_hooks"] = recording.steps.other_hooks
        if self._averaging.kind:
            extra["averaging"] = self._averaging.kind
        if self._stores_batches:
            extra |= {"stores_batches": True, "example_key": self._example_key is not None}
        if recording.started_with_average is not None:
            extra["average_before_first_step"] = list(recording.started_with_average)
        replayable, remarks = self._diagnostics.take_for_header()
        device = str(trainer.strategy.root_device)
        if self._mailbox is not None and self._mailbox.rank:
            return Sender(self._mailbox, device)
        if remarks:
            extra["remarks"] = remarks
        averages = bool(self._averaging.kind)
        prospect = prospect_of(trainer, recording, codec=self._writer_options["codec"], averaged=averages)
        if isinstance(self._keep, Budget):
            plan = make_plan(self._keep, prospect)
            rank_zero_info(f"TrajectoryRecorder: {plan.sentence(self._keep)}.")
            extra["budget"] = plan.document()
        header = make_header(
            trainer,
            module,
            reader=recording.reader,
            keep=self._keep,
            datasets=self._tap.describe(),
            replayable=replayable,
            extra=extra,
        )
        expected = expected_steps(trainer, recording.count)
        writer = self._place.open(
            self._writer, header, recording.count, expected_steps=expected, **self._writer_options
        )
        if isinstance(self._keep, Budget):
            recording.keep = BudgetedKeep(
                self._keep,
                prospect,
                measure=writer.sizes,
                remaining=lambda seconds: remaining_steps(trainer, seconds),
                inform=lambda sentence: rank_zero_info(f"TrajectoryRecorder: {sentence}."),
            )
        return writer if self._mailbox is None else Collector(writer, self._mailbox, device)
