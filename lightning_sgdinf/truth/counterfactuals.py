r"""Counterfactual training: the recorded run again without some examples, for many sets of examples at once.

.. math:: s_{t+1} = \Phi_t\Big(s_t, \tfrac{1}{|S_t|} \sum_{i \in S_t \setminus D} \nabla l_i(\theta_t)\Big)

with the batches, initial state, hyper-parameters and random numbers of the record. The answer for a set :math:`D` is
:math:`q(\theta_T^{-D}) - q(\theta_T)`, which is what every influence score estimates.

Runs are the same until one of their examples is first drawn. So they are taken in the order of that step, a chunk of
them at once: one replica is the run with nothing left out, and every other one leaves it when its own first example is
drawn. What is subtracted is the query of that replica, computed by the same kernels, so that rounding cancels.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.query import Query
from lightning_sgdinf.replay import CounterfactualRun, Divisor, OpenedRun, audit_steps, stored_at_or_before
from lightning_sgdinf.truth.ledger import Ledger
from lightning_sgdinf.truth.memory import Footprint, measure_footprint
from lightning_sgdinf.truth.plan import Plan, make_plan
from lightning_sgdinf.truth.result import Truth
from lightning_sgdinf.truth.runs import Runs, SequentialRuns, StackedRuns
from lightning_sgdinf.truth.stacked_query import StackedQuery, first_line
from lightning_sgdinf.truth.verify import Verified, verify
from lightning_sgdinf.truth.workers import Opening, Workers

_Measured: TypeAlias = tuple[Sequence[int], Tensor, int, Tensor]
"""Numbers of sets, their changes, the training steps it took, and how far the run beside them was from the recorded."""

LOOP_CHUNK = 16
"""Runs between two looks at the recorded one, where they are taken one after another."""


class Counterfactuals:
    """Measures what leaving examples out of a recorded run does to a query.

    Made by `InfluenceRunner.truth`, and valid inside it. Before the first run it makes sure that example weights reach
    the whole loss and that the run with nothing left out comes out as recorded.

    Args:
        run: The recorded run; ``memory_bytes`` bounds what runs taken at once may need.
        query: The query, bound to its data.
        labels: Of the training examples, for display.
        progress: Show a progress bar.
        divisor: ``"kept"``: the losses of a batch are divided by the number of all its examples; ``"reduced"``, of
            those that are left.
        remarks: What a reader of any result must know besides.

    Raises:
        UntappedLossError: If example weights do not reach the whole loss.
    """

    def __init__(
        self,
        run: OpenedRun,
        query: BoundQuery,
        *,
        labels: tuple[str, ...] | None = None,
        divisor: Divisor = "kept",
        progress: bool = True,
        remarks: Sequence[str] = (),
    ) -> None:
        self.run, self.query = run, query
        self._remarks = tuple(remarks)
        self.log, self.examples = run.log, run.examples
        self.divisor: Divisor = divisor
        self.labels, self._progress = labels, progress
        self.stacked = StackedQuery(query, run.log.average)
        self._verified: tuple[int, Verified] | None = None
        self._footprint: Footprint | None = None
        run.audit()

    def measure(
        self,
        leave_out: Iterable[Iterable[int]] | None = None,
        *,
        first_step: int = 0,
        last_step: int | None = None,
        resume: str | Path | None = None,
        jobs: int = 1,
    ) -> Truth:
        """Train without each of some sets of examples.

        Args:
            leave_out: Sets of example ids; ``None`` for every single example.
            first_step: Leave them out from this step on only; before it the run is as recorded.
            last_step: Ask the query before this step; at the end of the run if ``None``.
            resume: A file that keeps what is done so far. Runs that it holds are not re-run.
            jobs: Processes that train side by side, on the backend that joblib has been told to use; each opens the run
                for itself, and may need ``memory_bytes``.

        Returns:
            The measured changes.

        Raises:
            ConfigurationError: Sets, steps or a file that do not fit.
            StateNotStoredError: The log stores no state to start from.
            StepMismatchError: The record cannot be reproduced.
            UnsupportedRunError: Something other than the optimizer changed the state on the way.
            NonFiniteError: A run diverges without its examples.
        """
        began = time.perf_counter()
        workers = Workers(jobs)
        plan = make_plan(self.log, self.examples, leave_out, first_step=first_step, last_step=last_step)
        verified = self.verify(first_step)
        ledger = Ledger(resume, repr(self._key(plan)), len(plan.sets), len(self.stacked.names))
        ledger.done |= plan.first >= plan.stop  # never drawn, so nothing changes
        order = plan.ordered((~ledger.done).nonzero()[0])
        at_once = self.at_once(len(order), verified)
        recorded = self._recorded(plan)
        drift = torch.zeros_like(recorded)
        with self.progress(int(plan.cost[order].sum())) as bar:
            try:
                for numbers, values, steps, apart in self._measured(plan, order, bar, workers, recorded):
                    ledger.add(numbers, values, steps)
                    drift = torch.maximum(drift, apart)
            finally:
                ledger.save()  # what was measured is not lost with a machine
        seconds = ledger.seconds + time.perf_counter() - began
        return Truth(
            values=ledger.values,
            leave_out=plan.sets,
            examples=self.examples,
            queries=self.stacked.names,
            better=(self.query.query.better,) * len(self.stacked.names),
            base=recorded,
            labels=self.labels,
            first_step=plan.start,
            last_step=plan.stop,
            steps_taken=ledger.steps,
            at_once=at_once,
            seconds=seconds,
            verified=verified.replay,
            drift=drift,
            notes=self.notes(self.verify(first_step), at_once, len(order)),
            provenance=self.run.provenance(
                self._precision, seconds, query=repr(self.query.query), divisor=self.divisor
            ),
        )

    def verify(self, first_step: int = 0) -> Verified:
        """Make sure, once, that the run comes out as recorded; see `lightning_sgdinf.truth.verify`."""
        if self._verified is None or self._verified[0] > first_step:
            audit_steps(self.run, first_step)
            self._verified = first_step, verify(self.run, first_step=first_step)
        return self._verified[1]

    def chunks(self, plan: Plan, numbers: Sequence[int]) -> Iterator[Runs]:
        """Yield the runs of some sets of a plan, as many at once as fit into memory, ready to advance."""
        order = plan.ordered(numbers)
        verified = self.verify(plan.start)
        size = self.at_once(len(order), verified) if verified.stackable else LOOP_CHUNK
        for position in range(0, len(order), size):
            chunk = order[position : position + size]
            start = stored_at_or_before(self.log, int(plan.first[chunk[0]]))
            if not verified.stackable:
                yield SequentialRuns(self.run, self.stacked, plan, chunk, start, divisor=self.divisor)
                continue
            yield StackedRuns(
                self.run,
                self.stacked,
                plan,
                chunk,
                start,
                divisor=self.divisor,
                queries_at_once=self._memory().queries(self.run.memory_bytes),
            )

    def _measured(
        self, plan: Plan, order: Sequence[int], bar: Any, workers: Workers, recorded: Tensor
    ) -> Iterator[_Measured]:
        """Yield changes as they come: here, or from as many processes as there are, some runs for each at a time."""
        if not workers.apart or len(order) < 2 * workers.jobs:
            for runs in self._taken(plan, order, bar):
                values, base = runs.values()
                yield runs.numbers, values, runs.steps_taken, (base - recorded).abs()
            return
        key, opening = self._reopen()
        verified = self.verify(plan.start)
        size = self.at_once(len(order), verified) if verified.stackable else LOOP_CHUNK
        size = min(size, -(-len(order) // workers.jobs))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        with workers.kept():
            for start in range(0, len(chunks), workers.jobs):
                wave = chunks[start : start + workers.jobs]
                parts = [([plan.sets[i] for i in chunk], plan.start, plan.stop) for chunk in wave]
                answers = workers.map(_measure_there, key, opening, parts)
                for chunk, (values, steps, apart) in zip(wave, answers, strict=True):
                    bar.update(int(plan.cost[chunk].sum()))
                    yield chunk, values, steps, apart

    def _reopen(self) -> tuple[Any, Opening]:
        """Return what tells this from others, and a function that opens it in another process.

        Raises:
            ConfigurationError: The run was opened from a log that has no path.
        """
        if self.run.reopen is None:
            raise ConfigurationError(
                "jobs: other processes open the run for themselves, and this one cannot be opened again; use jobs=1"
            )
        query, divisor = self.query.query, self.divisor
        key = (self.log.digest, repr(query), divisor, self._precision, self.run.objective.tap)
        return key, partial(_open_there, self.run.reopen, query, divisor)

    def _taken(self, plan: Plan, numbers: Sequence[int], bar: Any) -> Iterator[Runs]:
        """Yield runs taken to the end; one after another from where they cannot be taken at once."""
        left = plan.ordered(numbers)
        for runs in self.chunks(plan, left):
            verified = self.verify(plan.start)
            try:
                runs.advance(plan.stop, bar.update)
            except SgdInfluenceError:
                raise
            except Exception as error:  # whatever an operation of the user's can fail with in a vectorised pass
                if not verified.stackable:
                    raise
                self._verified = plan.start, replace(verified, stackable=False, note=first_line(error))
                yield from self._taken(plan, left, bar)
                return
            yield runs
            left = [i for i in left if i not in set(runs.numbers)]

    def at_once(self, runs: int, verified: Verified) -> int:
        """Return how many of some runs are taken at once."""
        if not verified.stackable:
            return 1
        return max(1, min(runs, self._memory().replicas(self.run.memory_bytes) - 1))

    def notes(self, verified: Verified, at_once: int, runs: int) -> tuple[str, ...]:
        """Return the sentences that a reader of the result must know."""
        if not verified.stackable:
            notes = [f"The runs were taken one after another: {verified.note}"]
        else:
            notes = [verified.note]
            if at_once < runs:
                mebibytes = self._memory().step * at_once >> 20
                notes.append(f"{runs} runs, {at_once} at once, which need about {mebibytes} MiB.")
        return tuple(note for note in (*notes, self.stacked.note, *self._remarks) if note)

    def progress(self, steps: int) -> Any:
        """Make a progress bar over training steps, those of all runs together."""
        return tqdm(
            total=steps,
            desc="training without",
            unit=" steps",
            disable=not self._progress,
            dynamic_ncols=True,
            file=sys.stderr,
            leave=False,
        )

    @property
    def _precision(self) -> str | None:
        """Return the precision of the computation if it is not the recorded one, as the runner was told."""
        return "64-true" if self.run.objective.dtype is not None else None

    def _memory(self) -> Footprint:
        if self._footprint is None:
            self._footprint = measure_footprint(self.run, self.query)
        return self._footprint

    def _recorded(self, plan: Plan) -> Tensor:
        """Return the query of the recorded model, float64 ``[Q]``."""
        if plan.stop == len(self.log):
            return self.query.value(self.run.model)
        return self.query.value(CounterfactualRun(self.run, plan.stop, plan.stop).run())

    def _key(self, plan: Plan) -> tuple[Any, ...]:
        """Return values that tell one measurement from any other."""
        # A function's address in the repr of a query differs from process to process.
        return (
            self.log.digest,
            re.sub(r" at 0x[0-9a-f]+", "", repr(self.query.query)),
            self.stacked.names,
            plan.sets,
            plan.start,
            plan.stop,
            self.divisor,
            self._precision,
            self.run.objective.tap,
        )


def _open_there(reopen: Callable[[], Any], query: Query, divisor: Divisor, stack: ExitStack) -> Counterfactuals:
    """Open run and query in another process."""
    torch.set_num_threads(1)  # as many processes as there are cores do the work side by side
    run = stack.enter_context(reopen())
    bound = BoundQuery.of(run, query, dtype=run.objective.dtype)
    return Counterfactuals(run, bound, divisor=divisor, progress=False)


def _measure_there(opened: Counterfactuals, part: Any) -> tuple[Tensor, int, Tensor]:
    """Measure some sets in another process."""
    sets, first_step, last_step = part
    truth = opened.measure(sets, first_step=first_step, last_step=last_step)
    return truth.values, truth.steps_taken, truth.drift
