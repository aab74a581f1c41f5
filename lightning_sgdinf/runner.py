"""InfluenceRunner: the Trainer-style face of a walk."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import as_tensor, nn

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.arguments import one_of, require_instance, whole_number
from lightning_sgdinf.certificate import Level
from lightning_sgdinf.checkpointing import MEMORY_BYTES
from lightning_sgdinf.checks import checking, remarks_on
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.log import RunLog, Trajectory, key_labels
from lightning_sgdinf.query import MeanLoss, Query
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.replay import (
    Divisor,
    OpenedRun,
    PerExampleLoss,
    ReplaceLabels,
    Replayer,
    Retracer,
    RowOwners,
    RowShards,
    replace_second,
)
from lightning_sgdinf.replay.display_labels import display_labels
from lightning_sgdinf.replay.opening import open_run
from lightning_sgdinf.replay.recorded_state import RecordedState, best_checkpoint
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring import Method, Settings, job_for
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.truth import Counterfactuals, Truth
from lightning_sgdinf.updates import ModelUpdate, Updated


class InfluenceRunner:
    """Says for every training example of a recorded run how the model would have changed without it.

    Args:
        accelerator: As for a Trainer: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        devices: How many processes work together, at least 1. With at least as many queries as processes these are
            divided, otherwise the rows of each batch, where the model lets rows be told apart.
        strategy: As for Fabric; ``"auto"`` is ``"ddp_spawn"`` for several devices. ``"ddp"`` starts the whole script
            once per device, so use it only in a script that does nothing but score.
        precision: ``None`` computes as recorded; ``"64-true"`` in float64.
        compile: ``True`` compiles the kernel of a step (up to a minute, by a C++ compiler); long walks are up to twice
            as fast. It is checked against the eager kernel on the way, which is used, with a note, where it differs.
            ``None``: long walks of small models run the traced kernel, with the same numbers. ``False``: the eager one.
        certificate: ``"fast"`` checks within half of the walk's time or a second; ``"full"`` re-runs the whole run,
            with two dozen examples really left out; ``"off"`` checks nothing and says so.
        tap: Name of a sub-module at whose output example weights enter, for losses written by hand.
        per_example_loss: Computes the loss of each example, shape ``[B]``, from the module, a batch and its index, for
            losses written by hand in a class that is not yours to edit. Its mean must be the step's loss.
        val_loader: Number of the validation loader to ask about, where the run has several, as its ``dataloader_idx``.
        rows: Says which example owns which row of a loss, where that is not to be found out, or cannot be, as where no
            batch can be made of one example. Is called with a batch and the `LossRows` of a loss, and returns for each
            row the place of its owner in the list of the batch's drawn examples, -1 for a row that is no example's; or
            ``None`` to have it found out. Compared with what running examples alone shows.
        per_epoch: Keep each epoch's contributions (``Scores.per_epoch``).
        memory_bytes: Memory for states that are rebuilt rather than read. With room for all states between two stored
            ones each is rebuilt once; with less, some steps are taken twice or more, never more than needed.
        progress: Show a progress bar on standard error.
        rebuild: How states that were not stored are made again: ``"exact"``, to the last bit; ``"close"``, but for
            rounding, with a bounded drift; ``"auto"``, exact where threads, torch and device are those of training.
        room_bytes: The earlier name of ``memory_bytes``.

    Raises:
        ConfigurationError: For a value that is not one of these.

    Example::

        scores = InfluenceRunner(accelerator="auto").run(model, datamodule=dm, log="runs/mnist.tlog")
        scores.most_harmful(20)
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int = 1,
        strategy: str = "auto",
        precision: Literal["64-true"] | None = None,
        compile: bool | None = None,
        certificate: Level = "fast",
        tap: str | None = None,
        per_example_loss: PerExampleLoss | None = None,
        val_loader: int | None = None,
        rows: RowOwners | None = None,
        per_epoch: bool = False,
        memory_bytes: int = MEMORY_BYTES,
        progress: bool = True,
        rebuild: Literal["auto", "exact", "close"] = "auto",
        room_bytes: int | None = None,
    ) -> None:
        if room_bytes is not None:
            warn_renamed("room_bytes=", "memory_bytes=")
            memory_bytes = room_bytes
        if rows is not None and per_example_loss is not None:
            raise ConfigurationError("rows= and per_example_loss= were both given: losses of examples have no rows")
        self.accelerator, self.devices = accelerator, whole_number(devices, "devices", least=1)
        self.strategy = "ddp_spawn" if strategy == "auto" and devices > 1 else strategy
        self.settings = Settings(
            precision=one_of(precision, "precision", None, "64-true"),
            certificate=one_of(certificate, "certificate", "fast", "full", "off"),
            tap=tap,
            per_example_loss=per_example_loss,
            val_loader=val_loader,
            rows=rows,
            per_epoch=per_epoch,
            memory_bytes=whole_number(memory_bytes, "memory_bytes", least=1),
            progress=progress,
            compile=compile,
            rebuild=one_of(rebuild, "rebuild", "auto", "exact", "close"),
        )

    def run(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        query: Query | None = None,
        estimator: Method | None = None,
        at: RecordedState | None = None,
    ) -> Scores:
        """Score every training example.

        The loaders give the examples and their transforms; order and batching come from the log.

        Args:
            model: The LightningModule that was trained; its weights are not read, and it is given back untouched.
            train_dataloaders: As given to ``Trainer.fit``, loaders or a data module; not needed where the log holds the
                batches.
            val_dataloaders: As given to ``Trainer.fit``; what the query is computed from.
            datamodule: In place of loaders.
            log: Path of the record, or an open one.
            query: What is asked of the final model; the mean validation loss if ``None``.
            estimator: How to answer; the exact derivative of the run if ``None``. A `DirectEstimator` answers without
                the walk backwards, a `Baseline` ranks without a query.
            at: Score another state than the last: that after so many steps, of a checkpoint file, or ``"best"``, of the
                best that ``ModelCheckpoint(monitor=...)`` kept in the fit of this module.

        Returns:
            `Scores` with values ``[N, Q]`` and a certificate.

        Raises:
            LogError: No, unreadable, or damaged log.
            ModelMismatchError: Another model.
            DataMismatchError: Another data set, or one with random numbers of its own.
            UnsupportedRunError: A run that cannot be replayed rightly; says why and what to do instead.
            StepMismatchError: A step, taken again, leads elsewhere than recorded.
            CertificateError: Central differences contradict the walk.
            NonFiniteError: NaN or infinity in the replay.
            ConfigurationError: Arguments that do not go together.
        """
        at = best_checkpoint(model) if at == "best" else at
        given = (model, train_dataloaders, val_dataloaders, datamodule, log, at)
        arguments = (*given, query or MeanLoss(), estimator or SgdInfluence())
        if self.devices == 1:
            return self._score(None, *arguments)
        if isinstance(log, RunLog):
            raise ConfigurationError("several devices need the path of the log, not an open one: each process opens it")
        # Plain bytes both ways: torch's own queues would move the caller's tensors into shared memory.
        try:
            payload = pickle.dumps(arguments)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                "several devices need a model, data and query that can be pickled, to send them to the other "
                f"processes: {error}. Define them at the top level of a module, or use devices=1."
            ) from error
        score: Any = self._score_on  # Fabric passes the further arguments on, which its type does not say
        return pickle.loads(self._fabric().launch(score, torch.get_num_threads(), payload))

    def _score_on(self, fabric: Fabric, threads: int, payload: bytes) -> bytes:
        torch.set_num_threads(threads)
        return pickle.dumps(self._score(fabric, *pickle.loads(payload)))

    def _score(
        self,
        fabric: Fabric | None,
        model: nn.Module,
        train_dataloaders: Any,
        val_dataloaders: Any,
        datamodule: Any,
        log: str | Path | Trajectory,
        at: RecordedState | None,
        query: Query,
        estimator: Method,
    ) -> Scores:
        began = time.perf_counter()
        with self.open(model, train_dataloaders, val_dataloaders, datamodule, log=log, at=at, fabric=fabric) as run:
            team = None if fabric is None else _team(fabric)
            result = job_for(estimator, self.settings, run, lambda: self.bind(run, query), team).result()
            return Scores(
                values=result.values,
                queries=result.queries,
                labels=_labels(run),
                per_epoch=result.per_epoch,
                certificate=result.certificate,
                better=result.better,
                standard_error=result.standard_error,
                provenance=run.provenance(self.settings.precision, time.perf_counter() - began, **result.provenance),
            )

    @contextmanager
    def open(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        at: RecordedState | None = None,
        fabric: Fabric | None = None,
    ) -> Iterator[OpenedRun]:
        """Bring record, model and data together; inside, the model is borrowed.

        Args:
            model: The LightningModule that was trained.
            train_dataloaders: As for `run`.
            val_dataloaders: As for `run`.
            datamodule: As for `run`.
            log: As for `run`.
            at: As for `run`.
            fabric: The Fabric of this process, if there are several.
        """
        names = ("tap", "per_example_loss", "val_loader", "rows", "dtype", "memory_bytes", "progress", "rebuild")
        settings: dict[str, Any] = {name: getattr(self.settings, name) for name in names}
        settings |= {"log": log, "at": at, "device": (fabric or self._fabric()).device}
        with open_run(model, train_dataloaders, val_dataloaders, datamodule, **settings) as run:
            yield run

    def update(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        update: ModelUpdate,
        selection: Selection,
        at: RecordedState | None = None,
    ) -> Updated:
        """Change the trained model as a selection of training examples asks for.

        Args:
            model: The LightningModule that was trained; its weights are not read, and it is given back untouched. Put
                the result into a module with `lightning_sgdinf.updates.load_state`.
            train_dataloaders: As for `run`.
            val_dataloaders: As for `run`; for updates that look at validation data.
            datamodule: As for `run`.
            log: As for `run`.
            update: How, e.g. `lightning_sgdinf.updates.CounterfactualReplay`.
            selection: Which examples to leave out or to relabel.
            at: Change another model than the last, as for `run`.

        Returns:
            `Updated`: the state of the changed model, and what it cost.

        Raises:
            SgdInfluenceError: What `run` raises, for the run's own validation as query; and what the update says.
        """
        require_instance(update, "update", ("update",), ("ExtrapolatedReplay", "CounterfactualReplay"))
        require_instance(selection, "selection", ("check",), ("Selection",))
        remarks: list[str] = []
        with self.open(model, train_dataloaders, val_dataloaders, datamodule, log=log, at=at) as run:
            if self.settings.certificate != "off":
                run = replace(run, beside=checking(lambda run: self.bind(run, MeanLoss()), remarks))
            updated = update.update(run, selection)
        return replace(updated, notes=(*updated.notes, *remarks)) if remarks else updated

    @contextmanager
    def replayer(
        self, model: nn.Module, train_dataloaders: Any = None, datamodule: Any = None, *, log: str | Path | Trajectory
    ) -> Iterator[Replayer]:
        """Open a `Replayer` of a record: its steps taken again, as they were or with other example weights.

        Arguments are those of `open`.

        Raises:
            UntappedLossError: If example weights do not reach the whole loss, so that no example could be left out.
        """
        with self.open(model, train_dataloaders, datamodule=datamodule, log=log) as run:
            run.audit()
            yield Replayer(run.log, run.objective)

    @contextmanager
    def retracer(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        replace_labels: ReplaceLabels = replace_second,
    ) -> Iterator[Retracer]:
        """Open a record under its earlier name; see `replayer`, and `update` for other labels."""
        warn_renamed("InfluenceRunner.retracer", "InfluenceRunner.replayer", stacklevel=3)
        with self.replayer(model, train_dataloaders, datamodule, log=log) as replayer:
            yield Retracer(replayer.log, replayer.objective, replace_labels=replace_labels)

    @contextmanager
    def truth(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        query: Query | None = None,
        divisor: Divisor = "kept",
        at: RecordedState | None = None,
    ) -> Iterator[Counterfactuals]:
        """Open counterfactual training of a recorded run, to measure several times what leaving examples out does.

        Arguments are those of `run`; for ``divisor`` see `Counterfactuals`.
        """
        with self.open(model, train_dataloaders, val_dataloaders, datamodule, log=log, at=at) as run:
            bound = self.bind(run, query or MeanLoss())
            labels, progress = _labels(run), self.settings.progress
            remarks = () if self.settings.certificate == "off" else remarks_on(run, bound)
            yield Counterfactuals(run, bound, labels=labels, divisor=divisor, progress=progress, remarks=remarks)

    def bind(self, run: OpenedRun, query: Query) -> BoundQuery:
        """Return a query bound to an opened run and its validation data.

        Raises:
            ConfigurationError: If there is no validation loader, or several and no ``val_loader``; or no length.
        """
        return BoundQuery.of(run, query, dtype=self.settings.dtype)

    def counterfactuals(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        query: Query | None = None,
        leave_out: Iterable[Iterable[int]] | None = None,
        divisor: Divisor = "kept",
        resume: str | Path | None = None,
        at: RecordedState | None = None,
        jobs: int = 1,
    ) -> Truth:
        """Train again without each training example, or without each of some sets, many runs at once.

        Args:
            model: As for `run`.
            train_dataloaders: As for `run`.
            val_dataloaders: As for `run`.
            datamodule: As for `run`.
            log: As for `run`.
            query: As for `run`.
            leave_out: Sets of example ids; ``None`` for every single example.
            divisor: Number that the losses of a batch are divided by: of all its examples, or of those that are left.
            resume: A file that keeps what is done so far; a later call with it goes on from there.
            at: Train up to another state than the last, as for `run`.
            jobs: Processes that train side by side, on joblib's backend: of this machine, or Dask's or Ray's.

        Returns:
            `Truth` with the measured changes ``[M, Q]``.

        Raises:
            StepMismatchError: The record cannot be reproduced with nothing left out; nothing else was run then.
            SgdInfluenceError: What `run` and `Counterfactuals.measure` raise.
        """
        arguments = (model, train_dataloaders, val_dataloaders, datamodule)
        with self.truth(*arguments, log=log, query=query, divisor=divisor, at=at) as truth:
            return truth.measure(leave_out, resume=resume, jobs=jobs)

    def _fabric(self) -> Fabric:
        return Fabric(accelerator=self.accelerator, devices=self.devices, strategy=self.strategy)


def _team(fabric: Fabric) -> RowShards:
    return RowShards(fabric.global_rank, fabric.world_size, lambda t: as_tensor(fabric.all_reduce(t, None, "sum")))


def _labels(run: OpenedRun) -> tuple[str, ...] | None:
    return display_labels(run.dataset) or key_labels(run.log)
