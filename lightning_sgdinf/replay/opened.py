"""A recorded run, opened: the record together with the model and the data it came from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.checkpointing import MEMORY_BYTES
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import MicroBatch, Trajectory
from lightning_sgdinf.renamed import warn_renamed
from lightning_sgdinf.replay.batches import Loader
from lightning_sgdinf.replay.carried import expect_no_memory
from lightning_sgdinf.replay.examples import Examples
from lightning_sgdinf.replay.followers import expect_no_followers
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.precision import precision_of
from lightning_sgdinf.replay.rebuilding import Rebuild
from lightning_sgdinf.replay.weight_audit import LossAudit, audit_loss
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.validation_data import KeptBatches

Result = TypeVar("Result")
LOOKS = 12
"""Steps over the run that are asked whether they compute with what an earlier one kept, where steps keep numbers."""


def _no_validation_loader() -> Loader:
    raise ConfigurationError("no validation loader was given; pass the one to use as val_dataloaders")


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A recorded run with its model, its training data and, where there are some, its validation data.

    Attributes:
        log: The record.
        objective: The borrowed model's training step.
        dataset: The training set; ``None`` where the log holds the batches and no loader was given.
        find_validation_loader: Looks for the loader that validation examples come from, or says why there is none.
        val_loader: Number of that loader, where the run has several.
        memory_bytes: How much memory methods may take for states, in bytes.
        progress: Show progress bars on standard error.
        reopen: Opens the same run in another process, to which it can be sent if model and data can; ``None`` if
            nobody can but who opened it.
        beside: Looks at the loss when it is audited, before anything is computed from it.
        remarks: What a reader of any result must know of the run.
        rebuild: How states that were not stored are rebuilt.
    """

    log: Trajectory
    objective: Objective
    dataset: Any = None
    find_validation_loader: Callable[[], Loader] = _no_validation_loader
    val_loader: int | None = None
    memory_bytes: int = MEMORY_BYTES
    progress: bool = False
    reopen: Callable[[], AbstractContextManager[OpenedRun]] | None = None
    beside: Callable[[OpenedRun], None] | None = None
    remarks: tuple[str, ...] = ()
    rebuild: Rebuild = "exact"
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def host(self) -> Host:
        """Return the Trainer's part of a step."""
        return self.objective.host

    @property
    def examples(self) -> int:
        """Return the number of training examples, ``N``."""
        return self.objective.source.size

    @property
    def size(self) -> int:
        """Return ``examples`` by its earlier name."""
        warn_renamed("size of a run", "examples", stacklevel=2)
        return self.examples

    @property
    def final(self) -> ModelState:
        """Return the state after the last step."""
        return self.log.state(len(self.log))

    @property
    def model(self) -> ModelState:
        """Return the final model as the fit left it: with the averaged weights, if a callback averaged them."""
        final, average = self.final, self.log.average
        if average is None:
            return final
        return replace(
            final,
            params={n: average.get(n, v) for n, v in final.params.items()},
            buffers={n: average.get(n, v) for n, v in final.buffers.items()},
        )

    def once(self, key: Any, compute: Callable[[], Result]) -> Result:
        """Return what was computed under a key, computing it if this is the first time while the run is open.

        Args:
            key: Names what is computed, with all that it depends on beside the run.
            compute: Computes it.
        """
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def audit(self, other: int = 0) -> LossAudit:
        """Make sure, once, that example weights reach the whole loss.

        Args:
            other: A step whose batch the last step's is compared with.

        Raises:
            UntappedLossError: A part of the loss depends on the data and not on example weights.
            UnsupportedRunError: A step moves parameters that the optimizer does not.
        """
        steps = self.log.steps(len(self.log), 0)
        last = next((step.index for step in steps if not step.first_pass.without_loss), len(self.log) - 1)
        more = sorted({other, last // 2, last // 3, 2 * last // 3, max(last - 1, 0)})

        self.once("followers", lambda: expect_no_followers(self.log))

        def compute() -> LossAudit:
            looks = sorted({last, *more, *range(0, last, max(1, last // LOOKS))})
            expect_no_memory(self.objective, self.final, [self.log.step(index) for index in looks])
            return audit_loss(
                self.objective, self.final, self.log.step(last), self.log.step(other), more=map(self.log.step, more)
            )

        audit = self.once(("audit", other), compute)
        if self.beside is not None:
            self.once("beside the audit", partial(self.beside, replace(self, beside=None)))
        return audit

    @property
    def precision(self) -> str:
        """Return the precision that numbers of the run are rounded in, by name: what a check of them can ask for."""

        def compute() -> str:
            steps = self.log.steps(len(self.log), 0)
            step = next((s for s in steps if not s.first_pass.without_loss), self.log.step(len(self.log) - 1))
            return precision_of(self.objective, self.final, step, self.log.header.precision)

        return self.once("precision", compute)

    @property
    def training(self) -> Examples:
        """Return the training examples, with the augmentation of training, once they are known to be the recorded.

        Raises:
            UnsupportedRunError: If there is no data set, but only the batches in the log.
            DataMismatchError: If they are others than the run was trained on.
        """

        def compute() -> Examples:
            examples = self._examples(self.objective.source.loader())
            _expect_recorded_batches(self)
            return examples

        return self.once("training", compute)

    @property
    def validation_loader(self) -> Any:
        """Return the validation loader, asked for once: a data module may split at random when it is asked again.

        Raises:
            ConfigurationError: If there is not exactly one, or its data set has no length.
        """
        return self.once("validation loader", self.find_validation_loader)

    @property
    def validation(self) -> Examples:
        """Return the validation examples.

        Raises:
            ConfigurationError: If there is not exactly one validation loader.
        """
        objective = self.objective

        def bring(batch: Any) -> Any:
            with objective.host.stand_in.validating_at_end():
                return objective.bring(batch)

        if isinstance(self.validation_loader.dataset, KeptBatches):
            raise ConfigurationError(
                "the validation data are a stream, whose examples cannot be asked for one by one; pass a loader of a "
                "map-style data set (with __getitem__ and __len__)"
            )
        return replace(self._examples(self.validation_loader), bring=bring)

    @contextmanager
    def at(self, model: ModelState) -> Iterator[Callable[[Any], Tensor]]:
        """Load a model, in eval mode inside the ``with`` block, and give the training loss of a batch of `Examples`.

        The loss comes with its graph, which lasts as long as it is held.

        Args:
            model: Its parameters and buffers.
        """
        objective = self.objective
        objective.load(model)
        last = self.log.step(len(self.log) - 1)
        step = replace(last, micro_batches=(), accumulation=1, eval_modules=objective.parts)
        micro = MicroBatch(batch_idx=0, draws=(), attributes=last.micro_batches[-1].attributes)
        with objective.eval_mode():
            yield lambda batch: objective.trace(step, micro, batch).loss

    def provenance(self, precision: str | None, seconds: float, **more: Any) -> dict[str, Any]:
        """Return digests and reprs by which a result of this run can be told from any other.

        Args:
            precision: What was computed in, if not what was recorded.
            seconds: Wall time of the computation.
            more: What is particular to the result.
        """
        log = self.log
        return {
            "log": log.digest,
            "run": log.header.run_id,
            "steps": len(log),
            "of_average": log.average is not None,
            "precision": precision or log.header.precision,
            "device": str(self.host.device),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": seconds,
            "log_bytes": getattr(log, "size_bytes", 0),
            **more,
        }

    def _examples(self, loader: Loader) -> Examples:
        return Examples(dataset=loader.dataset, collate=loader.collate_fn, bring=self.objective.bring)


def _expect_recorded_batches(run: OpenedRun) -> None:
    """Make the last batches of training again, as many as hold each example once, and compare their checksums.

    A ranking re-runs no recorded step, so that nothing else would show that a data module split its data anew.
    """
    left = run.examples
    with random_state.preserved():
        for step in run.log.steps(len(run.log), 0):
            for micro in step.micro_batches:
                left -= len(micro.example_ids)
                of_data_set = len(micro.draws) == 1 and micro.draws[0].batch is None
                if of_data_set and micro.draws[0].digest is not None:
                    run.objective.source.batch(micro, step=step.index)
            if left <= 0:
                return
