"""InfluenceRunner: the Trainer-style face of a walk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_sgdinf.baselines import Baseline, Evidence
from lightning_sgdinf.certificate import Certificate, Level
from lightning_sgdinf.checkpointing import ROOM_BYTES
from lightning_sgdinf.checks.rerun import stopwatch
from lightning_sgdinf.dtypes import cast_floats
from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.estimators import DirectEstimator, Estimator, SgdInfluence
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.log.reindexed import key_labels, numbered
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.query import MeanLoss, Query, ValidationData
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.dataloaders import (
    display_labels,
    given_data,
    one_validation_loader,
    stored_run_loaders,
    training_loaders,
    validation_loader,
)
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.lightning_host import recorded_host
from lightning_sgdinf.replay.objective import open_objective
from lightning_sgdinf.replay.replayer import Divisor, ReplaceLabels, Replayer, replace_second
from lightning_sgdinf.replay.row_shards import RowShards
from lightning_sgdinf.replay.weight_audit import audit_loss
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring.direct_job import DirectJob
from lightning_sgdinf.scoring.walk_job import Job, Opened, Settings, averaged_model, provenance
from lightning_sgdinf.truth import Counterfactuals, Truth


class InfluenceRunner:
    """Says for every training example of a recorded run how the model would have changed without it.

    Args:
        accelerator: As for a Trainer: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        devices: How many processes work together, at least 1. With at least as many queries as processes these are
            shared out, otherwise the rows of each batch, where the model lets rows be told apart.
        strategy: As for Fabric; ``"auto"`` is ``"ddp_spawn"`` for several devices. ``"ddp"`` starts the whole script
            once per device, so use it only in a script that does nothing but score.
        precision: ``None`` computes as recorded; ``"64-true"`` in float64.
        compile: Compile the kernel of a step, which takes up to a minute and a C++ compiler and makes long walks about
            twice as fast. Checked against the eager kernel along the way; where it differs or cannot be had, the eager
            one is used and the certificate has a note.
        certificate: ``"fast"`` checks within about a fifth of the walk's time, ``"full"`` re-runs everything, ``"off"``
            checks nothing and says so.
        tap: Name of a sub-module at whose output example weights enter, for losses written by hand.
        per_epoch: Keep each epoch's contributions (``Scores.per_epoch``).
        room_bytes: Memory for states that are rebuilt rather than read, in bytes. With room for all states between two
            stored ones each is rebuilt once; with less, some steps are taken twice or more, never more than needed.
        progress: Show a progress bar on standard error.

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
        compile: bool = False,
        certificate: Level = "fast",
        tap: str | None = None,
        per_epoch: bool = False,
        room_bytes: int = ROOM_BYTES,
        progress: bool = True,
    ) -> None:
        if certificate not in ("fast", "full", "off"):
            raise ConfigurationError(f"certificate: expected 'fast', 'full' or 'off', got {certificate!r}")
        if precision not in (None, "64-true"):
            raise ConfigurationError(f"precision: expected None (as recorded) or '64-true', got {precision!r}")
        if devices < 1:
            raise ConfigurationError(f"devices: expected a number of at least 1, got {devices}")
        self.accelerator, self.devices = accelerator, devices
        self.strategy = "ddp_spawn" if strategy == "auto" and devices > 1 else strategy
        self.settings = Settings(
            precision=precision,
            certificate=certificate,
            tap=tap,
            per_epoch=per_epoch,
            room_bytes=room_bytes,
            progress=progress,
            compile=compile,
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
        estimator: Estimator | DirectEstimator | Baseline | None = None,
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

        Returns:
            `Scores` with values ``[N, Q]`` and a certificate.

        Raises:
            LogError: No, unreadable, or damaged log.
            ModelMismatchError: Another model.
            DataMismatchError: Another data set, or one with random numbers of its own.
            UnsupportedRunError: A run that cannot be replayed rightly; says why and what to do instead.
            StepMismatchError: A step, done again, leads elsewhere than recorded.
            CertificateError: Central differences contradict the walk.
            NonFiniteError: NaN or infinity in the replay.
            ConfigurationError: Arguments that do not go together.
        """
        arguments = (
            model,
            train_dataloaders,
            val_dataloaders,
            datamodule,
            log,
            query or MeanLoss(),
            estimator or SgdInfluence(),
        )
        if self.devices == 1:
            return self._score(None, *arguments)
        if isinstance(log, RunLog):
            raise ConfigurationError(
                "several devices need the path of the log, not an open one: every process opens it for itself"
            )
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
        query: Query,
        estimator: Estimator | DirectEstimator | Baseline,
    ) -> Scores:
        clock = stopwatch()
        train_dataloaders, datamodule = given_data(train_dataloaders, datamodule)
        with self.open(model, train_dataloaders, datamodule, log=log, fabric=fabric) as opened:
            labels = display_labels(opened.dataset) or key_labels(opened.log)
            if isinstance(estimator, Baseline):
                loader = one_validation_loader(model, val_dataloaders, datamodule)
                return self._rank(opened, estimator, loader, labels, clock)
            loader = validation_loader(model, val_dataloaders, datamodule)
            data = ValidationData(loader=loader, transfer=_transfer(opened.host, self.settings.dtype))
            if isinstance(estimator, DirectEstimator):
                return DirectJob(self.settings, opened, query, estimator, data).scores(clock, labels)
            team = (
                None
                if fabric is None
                else RowShards(fabric.global_rank, fabric.world_size, lambda t: _all_sum(fabric, t))
            )
            return Job(self.settings, opened, query, estimator, data, team).scores(clock, labels)

    @contextmanager
    def open(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        fabric: Fabric | None = None,
    ) -> Iterator[Opened]:
        """Bring record, model and data together; inside, the model is borrowed.

        Args:
            model: The LightningModule that was trained.
            train_dataloaders: As given to ``Trainer.fit``.
            datamodule: In place of loaders.
            log: Path of the record, or an open one.
            fabric: The Fabric of this process, if there are several.
        """
        if isinstance(log, (str, Path)):
            with (
                RunLog.open(log) as opened,
                self.open(model, train_dataloaders, datamodule, log=opened, fabric=fabric) as result,
            ):
                yield result
            return
        header = log.header
        if header.replayable:
            raise UnsupportedRunError(f"this run was recorded but cannot be replayed: {header.replayable}")
        if len(log) == 0:
            raise UnsupportedRunError("the log holds no complete step, so there is nothing to replay")
        train_dataloaders, datamodule = given_data(train_dataloaders, datamodule)
        if datamodule is not None:
            # As a Trainer does before it asks for loaders; data modules are written to stand being set up twice.
            datamodule.prepare_data()
            datamodule.setup("fit")
        if header.extra.get("stores_batches"):
            loaders = stored_run_loaders(train_dataloaders, header)
            log, size = numbered(log)
        else:
            loaders, size = training_loaders(model, train_dataloaders, datamodule), None
        source = BatchSource(loaders, header, size=size)
        host = recorded_host(header, model, datamodule, (fabric or self._fabric()).device)
        with open_objective(model, header, source, host, tap=self.settings.tap, dtype=self.settings.dtype) as objective:
            dataset = loaders[0].dataset if loaders else None
            yield Opened(log=log, objective=objective, host=host, source=source, dataset=dataset)

    @contextmanager
    def retracer(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        replace_labels: ReplaceLabels = replace_second,
    ) -> Iterator[Replayer]:
        """A `Replayer` of a record: its steps taken again, as they were or with other example weights.

        Arguments are those of `open`; ``replace_labels`` changes labels in a batch.

        Raises:
            UntappedLossError: If example weights do not reach the whole loss, so that no example could be left out.
        """
        with self.open(model, train_dataloaders, datamodule, log=log) as opened:
            last = opened.log.step(len(opened.log) - 1)
            audit_loss(opened.objective, opened.log.state(len(opened.log)), last, opened.log.step(0))
            yield Replayer(opened.log, opened.objective, replace_labels=replace_labels)

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
    ) -> Iterator[Counterfactuals]:
        """Counterfactual training of a recorded run, to measure several times what leaving examples out really does.

        Arguments are those of `run`; for ``divisor`` see `Counterfactuals`.
        """
        train_dataloaders, datamodule = given_data(train_dataloaders, datamodule)
        with self.open(model, train_dataloaders, datamodule, log=log) as opened:
            loader = validation_loader(model, val_dataloaders, datamodule)
            data = ValidationData(loader=loader, transfer=_transfer(opened.host, self.settings.dtype))
            labels = display_labels(opened.dataset) or key_labels(opened.log)
            yield Counterfactuals(opened, self.settings, query or MeanLoss(), data, labels=labels, divisor=divisor)

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
    ) -> Truth:
        """Train again without each training example, or without each of some sets, many runs at once.

        Args:
            model: The LightningModule that was trained; its weights are not read, and it is given back untouched.
            train_dataloaders: As given to ``Trainer.fit``.
            val_dataloaders: As given to ``Trainer.fit``; what the query is computed from.
            datamodule: In place of loaders.
            log: Path of the record, or an open one.
            query: What is asked of the final models; the mean validation loss if ``None``.
            leave_out: Sets of example ids; ``None`` for every single example.
            divisor: ``"kept"``: the losses of a batch are divided by the number of all its examples; ``"reduced"``, of
                those that are left.
            resume: A file that keeps what is done so far; a later call with it goes on from there.

        Returns:
            `Truth` with the measured changes ``[M, Q]``.

        Raises:
            StepMismatchError: The record cannot be reproduced with nothing left out; nothing else was run then.
            SgdInfluenceError: What `run` and `Counterfactuals.measure` raise.
        """
        with self.truth(
            model, train_dataloaders, val_dataloaders, datamodule, log=log, query=query, divisor=divisor
        ) as truth:
            return truth.measure(leave_out, resume=resume)

    def _rank(
        self,
        opened: Opened,
        baseline: Baseline,
        loader: Any,
        labels: tuple[str, ...] | None,
        clock: Callable[[], float],
    ) -> Scores:
        log = opened.log
        model = averaged_model(log.state(len(log)), log)
        values = baseline.rank(Evidence(log=log, objective=opened.objective, model=model, validation_loader=loader))
        note = f"{baseline.title}: a ranking only, not a predicted change."
        return Scores(
            values=values[:, None],
            queries=(baseline.title,),
            better=("order",),
            labels=labels,
            certificate=Certificate(level="off", notes=(note,)),
            provenance=provenance(opened, self.settings.precision, clock(), estimator=repr(baseline)),
        )

    def _fabric(self) -> Fabric:
        return Fabric(accelerator=self.accelerator, devices=self.devices, strategy=self.strategy)


def _all_sum(fabric: Fabric, tensor: torch.Tensor) -> torch.Tensor:
    total = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return total


def _transfer(host: Host, dtype: torch.dtype | None) -> Callable[[Any], Any]:
    def transfer(batch: Any) -> Any:
        batch = host.transfer(host.convert_input(batch))
        return batch if dtype is None else cast_floats(batch, dtype)

    return transfer
