"""One repeat of one cell: train and record, measure the truth, estimate it in every way."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.baselines import RandomBaseline
from lightning_sgdinf.curvature import ConjugateGradient, MomentumDescent
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, NonFiniteError
from lightning_sgdinf.estimators import Estimate, FinalParameters, KohLiang, LastEpochs, NoHessian, SgdInfluence
from lightning_sgdinf.estimators.accumulated import displacements, first_steps, linear_changes
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.refinement import Halving, Screening, refine
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.recorded_run import Training
from lightning_sgdinf.truth import Counterfactuals
from lightning_sgdinf.truth.replicas import Stack
from lightning_sgdinf.zoo import (
    BinaryData,
    BinaryExamples,
    BinarySource,
    PenalisedClassifier,
    cross_validated_penalty,
    enter_span,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The training of a cell's model.

    Attributes:
        lr: Learning rate, > 0.
        decay: Divide it by the root of the step's number.
        epochs: At least 1.
        batch_size: At least 1.
        penalty: Strength of the quadratic penalty; ``None`` for that of a cross-validated logistic regression.
        damping: What the published comparison with Koh and Liang adds to the curvature's diagonal; ``None`` for the
            penalty.
        budgets: Shares of the full truth's cost to refine with, in ``(0, 1]``.
        halving: Spend them by successive halving, which is for estimates that cannot be trusted; otherwise on the two
            ends of the estimate.

    Raises:
        ConfigurationError: A number out of range.
    """

    lr: float
    decay: bool
    epochs: int
    batch_size: int
    penalty: float | None = None
    damping: float | None = None
    budgets: Sequence[float] = ()
    halving: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(self.budgets))
        if not all(0 < budget <= 1 for budget in self.budgets):
            raise ConfigurationError(f"budgets: expected shares in (0, 1], got {list(self.budgets)}")
        if (
            not 0 < self.lr < inf
            or self.epochs < 1
            or self.batch_size < 1
            or not (self.penalty is None or 0 <= self.penalty < inf)
        ):
            raise ConfigurationError(
                f"expected lr > 0, epochs >= 1, batch_size >= 1 and a penalty >= 0 or null, got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A data set and a model.

    Attributes:
        dataset: Name of the data set.
        model: Name of the model.
        source: Where the examples come from.
        network: Makes the network from ``(dimensions,)`` and the number of outputs.
        protocol: How it is trained.
        size: Training, validation and test examples each.
        trainer: Makes a Trainer.
        runner: Makes an InfluenceRunner.
    """

    dataset: str
    model: str
    source: BinarySource
    network: Callable[..., nn.Module]
    protocol: Protocol
    size: int
    trainer: Callable[..., Trainer]
    runner: Callable[..., InfluenceRunner]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The result of one repeat.

    Attributes:
        seed: Of the repeat.
        true: Measured change of the validation loss without each training example, float64 ``[N]``.
        estimates: Estimated ones by method, ``[N]`` each; those that failed are absent.
        seconds: Wall time of each part.
        failed: Reason why a method gave nothing, by name.
        notes: Sentences on its certificate.
    """

    seed: int
    true: np.ndarray
    estimates: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def run_repeat(cell: Cell, examples: BinaryExamples, seed: int, *, certify: bool = False) -> Repeat:
    """Train, measure the truth, and estimate it by every method.

    Args:
        cell: Data set, model and protocol.
        examples: Those of the cell's source.
        seed: Of the parts, of the initial model and of cross-validation.
        certify: Check the scores of the exact derivative.
    """
    stopwatch = Stopwatch()
    with quiet(), random_state.preserved(), tempfile.TemporaryDirectory() as folder:
        with stopwatch("data and penalty"):
            data = BinaryData(examples, size=cell.size, batch_size=cell.protocol.batch_size, seed=seed)
            penalty = cell.protocol.penalty
            if penalty is None:
                penalty = cross_validated_penalty(data.train_set.inputs, data.train_set.labels, seed=seed)
        path = Path(folder) / "run.tlog"
        with stopwatch("training, recorded"):
            model = train(cell, data, penalty, seed, path)
        with RunLog.open(path) as log:
            return Judging(cell, data, model, log, seed, stopwatch).repeat(certify)


def train(cell: Cell, data: BinaryData, penalty: float, seed: int, path: Path) -> PenalisedClassifier:
    """Fit a model with the recorder on."""
    protocol = cell.protocol

    def new_model() -> PenalisedClassifier:
        network = cell.network((data.dimensions,), 1)
        if data.basis is not None:
            enter_span(network, data.basis)
        return PenalisedClassifier(network, penalty=penalty, lr=protocol.lr, decay=protocol.decay)

    return (
        Training(seed=seed, new_model=new_model, new_trainer=cell.trainer)
        .fit(
            recorder=TrajectoryRecorder(path),
            data={"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()},
            max_epochs=protocol.epochs,
            limit_val_batches=0,
        )
        .model
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about each of hundreds of small fits."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


class Stopwatch:
    """Wall time of named parts.

    Attributes:
        seconds: By name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time inside to a part's."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Judging:
    """A trained model with its record, to be judged by every method."""

    def __init__(
        self, cell: Cell, data: BinaryData, model: PenalisedClassifier, log: RunLog, seed: int, stopwatch: Stopwatch
    ) -> None:
        self.cell, self.model, self.log, self.seed, self.stopwatch = cell, model, log, seed, stopwatch
        self.loaders = data.train_dataloader(), data.val_dataloader()
        self.estimates: dict[str, np.ndarray] = {}
        self.failed: dict[str, str] = {}

    def repeat(self, certify: bool) -> Repeat:
        """Compute all estimates and the truth of the run."""
        exact = self._estimate("sgd_influence", SgdInfluence(), certificate="fast" if certify else "off")
        self._estimate("no_hessian", NoHessian())
        self._estimate("last_epochs", LastEpochs(1))
        self._estimate("final_parameters", FinalParameters(1))
        self._koh_liang()
        accumulated = Accumulated()
        linear = self._estimate("accumulated", accumulated)
        self._estimate("random", RandomBaseline(self.seed))
        assert linear is not None
        true = self._truth(linear, accumulated.moved)
        return Repeat(
            seed=self.seed,
            true=true,
            estimates=self.estimates,
            seconds=self.stopwatch.seconds,
            failed=self.failed,
            notes=exact.certificate.summary() if certify and exact is not None and exact.certificate else (),
        )

    def _truth(self, linear: Scores, moved: Tensor) -> np.ndarray:
        """Measure the truth, and refine estimates of it for a part of its cost."""
        runner = self.cell.runner(certificate="off", progress=False)
        strategy = Halving() if self.cell.protocol.halving else Screening()
        with ExitStack() as stack:
            with self.stopwatch("truth"):
                truth = stack.enter_context(runner.truth(self.model, *self.loaders, log=self.log))
                measured = truth.measure()
            with self.stopwatch("accumulated_evaluated"):
                screening = replace(linear, values=query_changes(truth, moved))
            self.estimates["accumulated_evaluated"] = screening.values[:, 0].numpy()
            self.stopwatch.seconds["accumulated_evaluated"] += self.stopwatch.seconds["accumulated"]
            for budget in self.cell.protocol.budgets:
                name = f"refine_{round(100 * budget)}"
                with self.stopwatch(name):
                    refined = refine(screening, truth, budget=budget, strategy=strategy)
                self.estimates[name] = refined.values[:, 0].numpy()
        return measured.values[:, 0].numpy()

    def _koh_liang(self) -> None:
        """Estimate by the paper's own variant, and by the solved system of the whole loss that it approximates."""
        damping = self.cell.protocol.damping
        bare = PenalisedClassifier(self.model.network, penalty=0.0, lr=self.model.lr)
        papers = KohLiang(MomentumDescent(), damping=self.model.penalty if damping is None else damping)
        self._estimate("koh_liang_paper", papers, model=bare)
        # For a linear model the Gauss-Newton matrix is the Hessian; for a network it needs no damping but the penalty.
        solved = KohLiang(ConjugateGradient(), damping=0.0, curvature="gauss_newton")
        self._estimate("koh_liang_solved", solved, precision="64-true")

    def _estimate(
        self, name: str, estimator: Any, *, model: PenalisedClassifier | None = None, **settings: Any
    ) -> Scores | None:
        runner = self.cell.runner(**{"certificate": "off", "per_epoch": False, "progress": False, **settings})
        try:
            with self.stopwatch(name):
                scores = runner.run(model or self.model, *self.loaders, log=self.log, estimator=estimator)
        except (DivergenceError, NonFiniteError) as error:
            self.failed[name] = str(error)
            return None
        self.estimates[name] = scores.values[:, 0].numpy()
        return scores


class Accumulated:
    """`lightning_sgdinf.estimators.AccumulatedInfluence`, which remembers how far the final parameters moved.

    Attributes:
        moved: ``[N, P]``; set by `estimate`.
    """

    moved: Tensor

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Estimate in one pass over the run for all examples, which are few."""
        first = first_steps(run.log, run.examples)
        order = torch.argsort(first, stable=True)
        self.moved = displacements(run.log, run.objective, order, first[order])[torch.argsort(order)]
        return Estimate(linear_changes(run, query, self.moved))


def query_changes(truth: Counterfactuals, moved: Tensor) -> Tensor:
    """Return changes of the query, float64 ``[N, Q]``, at final parameters displaced by ``[N, P]``, all at once."""
    vector = truth.run.objective.vector
    rows = torch.cat([moved.new_zeros(1, vector.size), moved])
    end = truth.log.state(len(truth.log)).params
    params = {n: end[n] + part for n, part in zip(vector.names, vector.split(rows), strict=True)}
    stack = Stack(params=params, buffers={}, shared={}, memory={}, fed={})
    values = truth.stacked.of_stack(stack, at_once=len(rows), averaged=False)
    return values[1:] - values[:1]
