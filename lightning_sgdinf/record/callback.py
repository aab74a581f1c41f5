"""The callback that records a training run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_sgdinf.arguments import path_of
from lightning_sgdinf.errors import ConfigurationError, LogWriteError
from lightning_sgdinf.log import LogWriter
from lightning_sgdinf.log.codecs import check_codec
from lightning_sgdinf.record import compatibility
from lightning_sgdinf.record.budget import Budget
from lightning_sgdinf.record.diagnostics import Diagnostics
from lightning_sgdinf.record.guard import Guard, guarded, guarded_anew
from lightning_sgdinf.record.keep import Keep, parse_keep
from lightning_sgdinf.record.log_location import LogLocation
from lightning_sgdinf.record.patches import Patches
from lightning_sgdinf.record.planned import Planned
from lightning_sgdinf.record.recorded_fit import COMPLETED, RecordedFit, Settings
from lightning_sgdinf.record.resume import bookmarks_of, lost_bookmark
from lightning_sgdinf.record.stored_batches import ExampleKey
from lightning_sgdinf.record.validation_watch import ValidationHooks
from lightning_sgdinf.record.writer import Writer


class TrajectoryRecorder(Planned, ValidationHooks):
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
        path: Directory to write the log to; by convention it ends in ``.tlog``. ``{name}`` and ``{version}`` are those
            of the Trainer's logger, so that a script can be run twice: ``"runs/{name}-{version}.tlog"``. Without a
            logger they are the class of the module, and the first number that is free.
        keep: The states to store: ``"every_step"``, ``"every(k)"`` (``1/k`` of the bytes; the others are
            recomputed), ``"last_epochs(n)"``, ``"final"``, or a `Keep` of your own. Of the others there are checksums.
            ``"budget:2GB"`` stores as many as fit: all of them, every ``k``-th, or those of the last epochs. It says
            what it chose and what replay will cost, and changes ``k`` when the run or its states turn out larger.
        codec: Compression of the states, see `lightning_sgdinf.log.LogWriter`.
        overwrite: Replace a log that is at ``path``.
        resume: When a fit is resumed from a checkpoint: ``"auto"`` goes on in the checkpoint's log if it is at
            ``path``, and otherwise warns and begins a new one with the present step; ``"require"`` raises instead of
            warning; ``"never"`` always begins a new log.
        when_full: Reaction to a full disk: ``"raise"``, or ``"stop_logging"`` and train on.
        store_batches: Keep every batch in the log, compressed, as it came from the loader. Needed for data that cannot
            be made again: an ``IterableDataset``, random numbers that are not those of torch's, numpy's or python's
            global generators. Replay then needs no training loader. Batches are tensors, arrays, numbers, strings, and
            lists, tuples and dicts of them. If the loader has no indices, the ids of examples are running numbers,
            and the examples of a batch as many as the rows of its first tensor.
        example_key: With ``store_batches``, called with each batch in the training process: says which examples it
            holds, as integers ``[B]`` from 0 on. So an example that a stream brings again is known again. Scores are in
            the order of the keys.
        digest_batches: Note a checksum of each batch, so that replay notices changed data; about 1 ms per 3 MB of
            batch.
        strict: Raise before the first step is complete if the run cannot be replayed (iterable data sets, manual
            optimization, several optimizers ...). Otherwise warn, record what can be recorded, and say in the log why
            it cannot be replayed.
        writer: Makes the log, a `lightning_sgdinf.record.Writer`. Called as ``writer(path, header=, codec=, when_full=,
            expected_steps=)`` and either ``overwrite=`` or ``continue_at=``; a `LogWriter` if ``None``.

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
        if example_key is not None and not store_batches:
            raise ConfigurationError(
                "example_key= names the examples of batches that are kept in the log; pass store_batches=True with it"
            )
        self._location = LogLocation(os.fspath(path_of(path)), overwrite=overwrite, resume=resume)
        self._settings = Settings(
            keep=parse_keep(keep),
            store_batches=store_batches,
            example_key=example_key,
            digest_batches=digest_batches,
            strict=strict,
            make_writer=writer or LogWriter,
            codec=codec,
            when_full=when_full,
        )
        self._guard = Guard(strict=strict)
        self._fit: RecordedFit | None = None
        self._patches = Patches()

    @property
    def path(self) -> Path:
        """Path of the present log, or the one at which the coming log is wanted."""
        return self._location.path

    @property
    def loaders(self) -> tuple[Any, ...]:
        """The training loaders of the present fit, as the Trainer prepared them; empty when there is none."""
        return () if self._fit is None else self._fit.loaders

    @property
    def recorded(self) -> bool:
        """True if the last fit that has ended left a step in the log."""
        return self._location.end is not None

    # Before training -------------------------------------------------------------------------------------------

    @guarded_anew
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that the coming fit can be recorded, and tap its loaders.

        Raises:
            UnsupportedRunError: If it cannot, and the recorder is strict.
            ConfigurationError: If ``keep`` cannot work with the Trainer's settings.
        """
        self._guard.last(self._release)
        if stage != "fit" or compatibility.is_tuner_search(trainer):
            return
        self._location.bookmarks, self._location.end = None, None
        if trainer.fast_dev_run:
            rank_zero_info("TrajectoryRecorder: nothing is recorded with fast_dev_run.")
            return
        settings = self._settings
        diagnostics = Diagnostics(strict=settings.strict)
        if reason := compatibility.impossible_to_record(trainer):
            diagnostics.nothing_recorded(reason)
            return
        compatibility.check_keep(settings.keep, trainer.max_epochs)
        if settings.strict and not pl_module.automatic_optimization:  # others hear of it when all is known
            diagnostics.problem(compatibility.MANUAL_OPTIMIZATION)
        try:
            self._fit = RecordedFit(
                settings, self._location, diagnostics, self._guard, trainer, pl_module, self._patches
            )
        except BaseException:
            self._patches.undo()
            raise

    @guarded
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Read the place in a log of the checkpoint that the fit starts from; searches load some of their own."""
        if not compatibility.is_of_search(trainer.ckpt_path):
            self._location.bookmarks = bookmarks_of(checkpoint)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Choose the log, before anything takes long.

        Raises:
            LogExistsError: If the path is taken.
            ResumeError: If the log cannot be continued where the checkpoint stands.
            LogLockedError: If another process is writing the log.
        """
        if self._fit is not None and not trainer.strategy.restore_checkpoint_after_setup:
            self._guard.run(self._fit.choose_log, named=True)

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the recording; searches that run inside a fit never come here.

        Raises:
            UnsupportedRunError: If the optimizers cannot be recorded or replayed, and the recorder is strict.
        """
        if self._fit is not None:
            if trainer.strategy.restore_checkpoint_after_setup:
                self._fit.choose_log()
            self._fit.begin()

    # Training --------------------------------------------------------------------------------------------------

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare for callbacks that unfreeze layers or swap tensors now."""
        if self._fit is not None and (recording := self._fit.recording) is not None:
            recording.states.refresh_later()

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the index of the batch."""
        if self._fit is not None:
            self._fit.tap.batch_idx = batch_idx
            if self._fit.recording is not None:
                self._fit.recording.finish_step()

    @guarded
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Hand the last step over: the writer has the interpreter for itself now, mostly."""
        if self._fit is not None and (recording := self._fit.recording) is not None:
            recording.delivery.hand_over()

    @guarded
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Count real backward passes."""
        if self._fit is not None and (recording := self._fit.recording) is not None:
            recording.assembler.backward_passes += 1

    @guarded
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Check what should have stayed constant."""
        if self._fit is not None and (recording := self._fit.recording) is not None:
            recording.check_constants()

    @guarded
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note in the checkpoint the place in the log; after the fit, that of its end."""
        bookmark = self._location.end
        if self._fit is not None and self._fit.end is not None:
            bookmark = self._fit.end  # a signal's handler saves while the log is being finished
        elif self._fit is not None and self._fit.recording is not None:
            try:
                bookmark = self._fit.bookmark(self._fit.recording)
            except LogWriteError as error:  # the next step will raise it; the checkpoint shall not be lost with the log
                bookmark = lost_bookmark(self._location.run_id, self.path, self._location.usable)
                rank_zero_warn(f"the checkpoint is saved without a bookmark of {self.path}: {bookmark.lost}; {error}")
            else:
                self._location.usable = f"at global step {trainer.global_step}, in epoch {trainer.current_epoch}"
        if bookmark is not None:
            bookmark.put_into(checkpoint)

    # The end ---------------------------------------------------------------------------------------------------

    @guarded
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the log.

        Raises:
            LogWriteError: From the writer.
        """
        self._close(COMPLETED)

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Look if the model is still the one that the log ends with."""
        if self._fit is not None:
            self._fit.look_back()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep what is complete; the exception goes on its way."""
        self._guard.last(self._close, f"exception: {type(exception).__name__}: {exception}".rstrip(": "))
        self._guard.last(self._release)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave Trainer and optimizer as they were."""
        if self._fit is not None:
            self._guard.run(self._fit.look_back)
        self._guard.run(self._release)
        self._guard.last(self._patches.undo)  # whatever went wrong

    def _release(self) -> None:
        try:
            self._close("stopped")
        finally:
            self._patches.undo()
            self._fit = None  # not before: an interrupt may come in between

    def _close(self, reason: str) -> None:
        if (fit := self._fit) is not None and fit.recording is not None:
            try:
                fit.close(reason)
            finally:
                self._location.end = fit.end
