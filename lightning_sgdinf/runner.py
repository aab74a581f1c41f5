"""InfluenceRunner: the Trainer-style face of a walk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm.auto import tqdm

import lightning_sgdinf.adjoint.optimizers  # noqa: F401 - registers the update rules
from lightning_sgdinf.adjoint.ask import gradient_of
from lightning_sgdinf.adjoint.audit import audit_loss
from lightning_sgdinf.adjoint.batches import BatchSource, cast_floats
from lightning_sgdinf.adjoint.objective import Host, Objective, open_objective
from lightning_sgdinf.adjoint.retrace import ReplaceLabels, Retracer, replace_second
from lightning_sgdinf.adjoint.vector import Adjoint
from lightning_sgdinf.baselines import Baseline
from lightning_sgdinf.certificate import Certificate, Level
from lightning_sgdinf.checks import Plan, check_gradient, check_trust, fast_plan, open_rerun, stopwatch, window_examples
from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.estimators import Estimator, SgdInfluence
from lightning_sgdinf.host import recorded_host, validation_context
from lightning_sgdinf.loaders import display_labels, training_loaders, validation_loader
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.query import MeanLoss, Query, ValidationData
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.walk import Tally, Walk

_ROOM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A record and the model and data it came from, together and ready.

    Attributes:
        log: The record.
        objective: The model's training step.
        host: What stands around it.
        source: Gives recorded batches.
    """

    log: Trajectory
    objective: Objective
    host: Host
    source: BatchSource


class InfluenceRunner:
    """Says for every training example of a recorded run how the model would have changed without it.

    Args:
        accelerator: As for a Trainer: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        devices: How many; see ``strategy``.
        strategy: As for Fabric; with several devices the queries, or the rows of each batch, are shared out.
        precision: ``None`` computes as recorded; ``"64-true"`` in float64.
        certificate: ``"fast"`` checks within about a fifth of the walk's time, ``"full"`` re-runs everything, ``"off"`` checks nothing and says so.
        tap: Name of a sub-module at whose output example weights enter, for losses written by hand.
        per_epoch: Keep each epoch's contributions (``Scores.per_epoch``).
        room_bytes: Memory for states that are rebuilt rather than read.
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
        devices: int | str = 1,
        strategy: str = "auto",
        precision: Literal["64-true"] | None = None,
        certificate: Level = "fast",
        tap: str | None = None,
        per_epoch: bool = False,
        room_bytes: int = _ROOM_BYTES,
        progress: bool = True,
    ) -> None:
        if certificate not in ("fast", "full", "off"):
            raise ConfigurationError(f"certificate: expected 'fast', 'full' or 'off', got {certificate!r}")
        if precision not in (None, "64-true"):
            raise ConfigurationError(f"precision: expected None (as recorded) or '64-true', got {precision!r}")
        self._fabric_arguments = {"accelerator": accelerator, "devices": devices, "strategy": strategy}
        self.precision = precision
        self.certificate: Level = certificate
        self.tap = tap
        self.per_epoch = per_epoch
        self.room_bytes = room_bytes
        self.progress = progress

    def run(
        self,
        model: nn.Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        log: str | Path | Trajectory,
        query: Query | None = None,
        estimator: Estimator | Baseline | None = None,
    ) -> Scores:
        """Score every training example.

        The loaders give the examples and their transforms; order and batching come from the log.

        Args:
            model: The LightningModule that was trained; its weights are not read, and it is given back untouched.
            train_dataloaders: As given to ``Trainer.fit``.
            val_dataloaders: As given to ``Trainer.fit``; what the query is computed from.
            datamodule: In place of loaders.
            log: Path of the record, or an open one.
            query: What is asked of the final model; the mean validation loss if ``None``.
            estimator: How to answer; the exact derivative of the run if ``None``. A `Baseline` ranks without walking.

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
        clock = stopwatch()
        query, estimator = query or MeanLoss(), estimator or SgdInfluence()
        if isinstance(estimator, Baseline):
            return self._rank(model, train_dataloaders, datamodule, log, estimator, clock)
        if datamodule is not None:
            _set_up(datamodule)
        loader = validation_loader(model, val_dataloaders, datamodule)
        with self.open(model, train_dataloaders, datamodule, log=log) as opened:
            data = ValidationData(loader=loader, transfer=_transfer(opened.host, self._dtype))
            job = _Job(self, opened, query, estimator, data)
            return job.scores(clock, _dataset(train_dataloaders, model, datamodule))

    @contextmanager
    def open(
        self, model: nn.Module, train_dataloaders: Any = None, datamodule: Any = None, *, log: str | Path | Trajectory
    ) -> Iterator[Opened]:
        """Bring record, model and data together; inside, the model is borrowed.

        Args:
            model: The LightningModule that was trained.
            train_dataloaders: As given to ``Trainer.fit``.
            datamodule: In place of loaders.
            log: Path of the record, or an open one.
        """
        if isinstance(log, (str, Path)):
            with RunLog.open(log) as opened, self.open(model, train_dataloaders, datamodule, log=opened) as result:
                yield result
            return
        header = log.header
        if header.replayable:
            raise UnsupportedRunError(f"this run was recorded but cannot be replayed: {header.replayable}")
        if len(log) == 0:
            raise UnsupportedRunError("the log holds no complete step, so there is nothing to replay")
        if datamodule is not None:
            _set_up(datamodule)
        fabric = Fabric(**self._fabric_arguments)
        host = recorded_host(header, model, datamodule, fabric.device)
        source = BatchSource(training_loaders(model, train_dataloaders, datamodule), header)
        with open_objective(model, header, source, host, tap=self.tap, dtype=self._dtype) as objective:
            yield Opened(log=log, objective=objective, host=host, source=source)

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
        """A `Retracer` of a record: its steps taken again, as they were or with other example weights.

        Arguments are those of `open`; ``replace_labels`` changes labels in a batch.
        """
        with self.open(model, train_dataloaders, datamodule, log=log) as opened:
            yield Retracer(opened.log, opened.objective, replace_labels=replace_labels)

    def _rank(
        self, model: nn.Module, train_dataloaders: Any, datamodule: Any, log: Any, baseline: Baseline, clock: Callable[[], float]
    ) -> Scores:
        with self.open(model, train_dataloaders, datamodule, log=log) as opened:
            values = baseline.rank(opened.log, opened.objective, opened.source.size)
            note = f"{baseline.title}: a ranking only, not a predicted change."
            return Scores(
                values=values[:, None],
                queries=(baseline.title,),
                labels=display_labels(_dataset(train_dataloaders, model, datamodule)),
                certificate=Certificate(level="off", notes=(note,)),
                provenance=provenance(opened, self.precision, clock(), estimator=repr(baseline)),
            )

    @property
    def _dtype(self) -> torch.dtype | None:
        return torch.float64 if self.precision == "64-true" else None


class _Job:
    """One call of `InfluenceRunner.run`, once everything is open."""

    def __init__(self, runner: InfluenceRunner, opened: Opened, query: Query, estimator: Estimator, data: ValidationData) -> None:
        self.runner, self.opened, self.query, self.estimator, self.data = runner, opened, query, estimator, data
        self.log, self.objective = opened.log, opened.objective
        self.context = validation_context(opened.host, opened.log.header)
        self.examples = opened.source.size
        self.first = estimator.first_step(opened.log)
        self.notes: list[str] = []
        self.result = Certificate(level=runner.certificate)
        self.check_seconds = 0.0

    def scores(self, clock: Callable[[], float], dataset: Any) -> Scores:
        """Walk, check, and put the result together."""
        final = self.log.state(len(self.log))
        values, adjoint = self.query_gradient(_averaged(final, self.log), of_average=self.log.average is not None)
        self.audit(final)
        epochs = self.log.step(len(self.log) - 1).epoch + 1 if self.runner.per_epoch else 0
        plan = self.plan()
        with self._progress() as bar:

            def on_step(t: int, before: ModelState, tally: Tally) -> None:
                bar.update()
                if plan is not None and t == plan.first_step:
                    self.check(plan, before, tally)

            walk = Walk(
                log=self.log,
                objective=self.objective,
                estimator=self.estimator,
                query_at=lambda state: self.query_gradient(state)[1],
                room=self._room(final),
                compare=self.runner.certificate != "off",
                on_step=on_step,
            )
            tally = walk.run(adjoint, examples=self.examples, epochs=epochs)
        if tally.rebuilt:
            self.notes.append(f"{tally.rebuilt} states were rebuilt by doing recorded steps again; each matched its checksum.")
        certificate = replace(
            self.result, step_replay=tally.comparison.value(), seconds=self.check_seconds, notes=tuple(self.notes)
        )
        return Scores(
            values=tally.scores,
            queries=self.query.names(self.data),
            labels=display_labels(dataset),
            per_epoch=tally.per_epoch,
            certificate=certificate,
            better=(self.query.better,) * tally.scores.shape[1],
            provenance=provenance(
                self.opened,
                self.runner.precision,
                clock(),
                estimator=repr(self.estimator),
                query=repr(self.query),
                query_values=values.tolist(),
            ),
        )

    def query_gradient(self, state: ModelState, *, of_average: bool = False) -> tuple[Tensor, Adjoint]:
        """Values and adjoint of the queries at a state."""
        return gradient_of(self.objective, state, self.query, self.data, self.context, of_average=of_average)

    def audit(self, final: ModelState) -> None:
        """Make sure that example weights reach the whole loss, before the first score."""
        last = self.log.step(len(self.log) - 1)
        audit_loss(self.objective, final, last, self.log.step(self.first))

    def plan(self) -> Plan | None:
        """What will be re-run."""
        if self.runner.certificate == "off" or self.first == len(self.log):
            return None
        plan = fast_plan(self.log, self.first)
        if self.runner.certificate == "full":
            plan = Plan(first_step=self.first, gradient_examples=4, trust_examples=12)
        return plan

    def check(self, plan: Plan, before: ModelState, tally: Tally) -> None:
        """Re-run the window and hold the walk's scores so far against it."""
        clock = stopwatch()
        if self.estimator.state_for(plan.first_step, self.log) != plan.first_step:
            if plan.first_step not in self.log.state_indices:
                self.notes.append("Trust was not checked: that needs a recorded state to start a re-run from, and the log stores the final one only.")
                return
            before = self.log.state(plan.first_step)
        with open_rerun(
            self.log,
            self.objective,
            self.opened.host,
            self.query,
            self.data,
            self.context,
            first_step=plan.first_step,
            start=before,
            examples=self.examples,
            tap=self.runner.tap,
        ) as rerun:
            gradient = check_gradient(rerun, tally.scores, plan) if self.estimator.exact else None
            ids = window_examples(self.log.steps(plan.first_step, len(self.log)))
            trust = check_trust(rerun, tally.scores, plan, ids)
        self.objective.forget_modes()
        self.result = replace(self.result, gradient_check=gradient, trust=trust)
        self.check_seconds += clock()

    def _progress(self) -> Any:
        return tqdm(
            total=len(self.log) - self.first,
            desc="replaying backwards",
            unit=" steps",
            disable=not self.runner.progress,
            dynamic_ncols=True,
            file=sys.stderr,
            leave=False,
        )

    def _room(self, state: ModelState) -> int:
        size = sum(v.numel() * v.element_size() for _, _, _, v in state.items())
        return max(3, self.runner.room_bytes // max(size, 1))


def provenance(opened: Opened, precision: str | None, seconds: float, **more: Any) -> dict[str, Any]:
    """Where scores come from: digests and reprs by which a result can be told from any other."""
    log = opened.log
    return {
        "log": log.digest,
        "run": log.header.run_id,
        "steps": len(log),
        "of_average": log.average is not None,
        "precision": precision or log.header.precision,
        "device": str(opened.host.device),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "log_bytes": getattr(log, "size_bytes", 0),
        **more,
    }


def _averaged(final: ModelState, log: Trajectory) -> ModelState:
    """The final model as the fit left it: with the averaged weights, if a callback averaged them."""
    average = log.average
    if average is None:
        return final
    return replace(
        final,
        params={n: average.get(n, v) for n, v in final.params.items()},
        buffers={n: average.get(n, v) for n, v in final.buffers.items()},
    )


def _transfer(host: Host, dtype: torch.dtype | None) -> Callable[[Any], Any]:


    def transfer(batch: Any) -> Any:
        batch = host.transfer(host.convert_input(batch))
        return batch if dtype is None else cast_floats(batch, dtype)

    return transfer


def _dataset(train_dataloaders: Any, model: nn.Module, datamodule: Any) -> Any:
    return training_loaders(model, train_dataloaders, datamodule)[0].dataset


def _set_up(datamodule: Any) -> None:
    """As a Trainer does before it asks for loaders; data modules are written to stand being set up twice."""
    datamodule.prepare_data()
    datamodule.setup("fit")
