"""The walk: every visited step handed to the estimator, last to first, while rebuilt states are held against recorded
ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.compiled import CompiledSteps
from lightning_sgdinf.adjoint.optim.base import rule_for
from lightning_sgdinf.adjoint.step import AdjointStep
from lightning_sgdinf.certificate import Amplification, StepReplay
from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError, StepMismatchError
from lightning_sgdinf.estimators import Estimator
from lightning_sgdinf.log import state_checksum
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.replayer import Replayer, refuse_changes
from lightning_sgdinf.replay.reproducibility import why_bits_differ
from lightning_sgdinf.replay.row_shards import RowShards
from lightning_sgdinf.replay.states import states_backwards
from lightning_sgdinf.state import ModelState

STEP_TOLERANCE = 1e-2
"""Largest deviation of a rebuilt state that is let pass, as a part of the recorded step's own size."""


@dataclass(slots=True)
class StepComparison:
    """Collects how rebuilt states compare with recorded ones."""

    steps: int = 0
    bitwise: int = 0
    largest: float = 0.0
    step: int = -1
    tensor: str = ""

    def value(self) -> StepReplay | None:
        """The result; ``None`` if nothing was compared."""
        if self.steps == 0:
            return None
        return StepReplay(
            steps=self.steps,
            bitwise=self.bitwise,
            largest_deviation=self.largest,
            step=self.step,
            tensor=self.tensor,
            tolerance=STEP_TOLERANCE,
        )


@dataclass(slots=True)
class Growth:
    """Follows how large the adjoint of the parameters is on the way back, per query."""

    end: Tensor
    largest: Tensor
    step: Tensor

    @classmethod
    def from_end(cls, adjoint: Adjoint, steps: int) -> Growth:
        """As it is after the last step."""
        size = adjoint.params.detach().norm(dim=1)
        return cls(size, size, torch.full_like(size, steps, dtype=torch.int64))

    def see(self, adjoint: Adjoint, step: int) -> None:
        """As it is before a step."""
        size = adjoint.params.detach().norm(dim=1)
        grown = size > self.largest
        self.largest = torch.where(grown, size, self.largest)
        self.step = self.step.masked_fill(grown, step)

    def value(self, first_step: int) -> Amplification | None:
        """The result; ``None`` if no query has a gradient at the end of the run."""
        there = self.end > 0
        if not bool(there.any()):
            return None
        factor, at = (self.largest[there].double() / self.end[there].double()).cpu().median(0)
        return Amplification(factor=float(factor), step=int(self.step[there][at]), first_step=first_step)


@dataclass(slots=True)
class Tally:
    """What a walk adds up.

    Attributes:
        scores: ``[N, Q]`` float64, minus the sum of slopes so far.
        per_epoch: ``[E, N, Q]``, or ``None`` if not asked for.
        comparison: Step replay so far.
        rebuilt: States that were rebuilt and matched the recorded checksum.
        growth: Of the adjoint so far.
    """

    scores: Tensor
    per_epoch: Tensor | None
    growth: Growth
    comparison: StepComparison = field(default_factory=StepComparison)
    rebuilt: int = 0

    def add(self, ids: Tensor, slopes: Tensor, epoch: int) -> None:
        """Book the slopes ``[Q, B]`` of one step."""
        part = -slopes.detach().to("cpu", torch.float64).T
        self.scores.index_add_(0, ids, part)
        if self.per_epoch is not None:
            self.per_epoch[epoch].index_add_(0, ids, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Everything a walk needs but for the adjoint it starts from.

    Attributes:
        log: The record.
        objective: The opened model.
        estimator: What to do at each step.
        query_at: The queries' adjoint at any state.
        share: This process's rows of each batch, if several processes share them out.
        room: How many rebuilt states may be held at once.
        compare: Hold rebuilt states against recorded ones.
        compiled: Compiles the steps' kernel; ``None`` for the eager one.
        on_step: Called when a step is done, with its index, the state it was taken from and the tally; for progress and
            for checks along the way.
    """

    log: Trajectory
    objective: Objective
    estimator: Estimator
    query_at: Callable[[ModelState], Adjoint]
    share: RowShards | None = None
    room: int = 64
    compare: bool = True
    compiled: CompiledSteps | None = None
    on_step: Callable[[int, ModelState, Tally], None] = lambda step, before, tally: None

    def run(self, adjoint: Adjoint, *, examples: int, epochs: int = 0) -> Tally:
        """Walk from the end of the run to the estimator's first step.

        Args:
            adjoint: The gradient of the queries at the end of the run.
            examples: ``N``.
            epochs: ``E`` to keep contributions per epoch, 0 not to.

        Raises:
            StepMismatchError: If a step, done again, leads to another state than the recorded one.
            ConfigurationError: If states must be rebuilt and the precision is not the recorded one.
            UnsupportedRunError: If something other than the optimizer changed the state on the way.
            NonFiniteError: If a number stops being finite; names the step.
        """
        queries = adjoint.queries
        tally = Tally(
            torch.zeros(examples, queries, dtype=torch.float64),
            torch.zeros(epochs, examples, queries, dtype=torch.float64) if epochs else None,
            Growth.from_end(adjoint, len(self.log)),
        )
        total, first = len(self.log), self.estimator.first_step(self.log)
        frozen = total > first and self.estimator.state_for(total - 1, self.log) == total
        rule = rule_for(self.log.header.optimizer)
        final = self.log.state(total)
        states = ((t, final) for t in range(total - 1, first - 1, -1)) if frozen else self._states(total, first, tally)
        after = final
        following = None
        for step, (t, before) in zip(self.log.steps(total, first), states, strict=True):
            if following is not None and not frozen:
                refuse_changes(following)
            at = AdjointStep(
                step,
                _on(before, self.objective.host.device),
                self.objective,
                rule,
                self.query_at,
                is_epoch_end=following is None or following.epoch != step.epoch,
                share=self.share,
                compiled=self.compiled,
            )
            adjoint, slopes = self._visit(at, adjoint, None if frozen else after, tally.comparison)
            tally.add(torch.tensor(step.example_ids), slopes, step.epoch)
            tally.growth.see(adjoint, t)
            after, following = before, step
            self.on_step(t, before, tally)
        if not bool(torch.isfinite(tally.scores).all()):
            raise NonFiniteError(
                "a score is not finite although every step was; this is a defect, please report it with the log's "
                "header"
            )
        return tally

    def _visit(
        self, at: AdjointStep, adjoint: Adjoint, after: ModelState | None, found: StepComparison
    ) -> tuple[Adjoint, Tensor]:
        """Let the estimator account for a step, and hold the state it led to against the recorded one."""
        known = replace(found)
        result = self.estimator.visit(at, adjoint)
        if not self.compare or after is None or at.taken is None:
            return result
        try:
            _compare(at, after, self.objective, found)
        except StepMismatchError:
            if self.compiled is None or self.compiled.note:
                raise
            self.compiled.give_up(f"step {at.step.index}, done by the compiled kernel, leads elsewhere than recorded")
            for name in known.__slots__:
                setattr(found, name, getattr(known, name))
            result = self.estimator.visit(at, adjoint)
            _compare(at, after, self.objective, found)
        return result

    def _states(self, start: int, stop: int, tally: Tally) -> Iterator[tuple[int, ModelState]]:
        retracer = Replayer(self.log, self.objective)

        def advance(state: ModelState, t: int) -> ModelState:
            rebuilt = retracer.advance(state, self.log.step(t))
            recorded = self.log.state_checksum(t + 1)
            if recorded is not None and (found := state_checksum(rebuilt)) != recorded:
                _refuse_other_precision(self.log, self.objective)
                raise StepMismatchError(
                    f"state {t + 1}, rebuilt by doing step {t} again, differs from the recorded one (checksum "
                    f"{recorded:08x} recorded, {found:08x} now). {why_bits_differ(self.log.header)}"
                )
            tally.rebuilt += 1
            return rebuilt

        return states_backwards(self.log, start, stop, advance, room=self.room)


def _on(state: ModelState, device: torch.device) -> ModelState:
    """The state where it is computed with; counters stay on the CPU, where optimizers want them."""
    return state if device.type == "cpu" else state.map(lambda v: v.to(device) if v.ndim else v)


def _refuse_other_precision(log: Trajectory, objective: Objective) -> None:
    """States that are rebuilt in another precision are other states."""
    recorded = {dtype for _, _, dtype in log.header.parameters}
    if objective.dtype is not None and {dtype_name(objective.dtype)} != recorded:
        raise ConfigurationError(
            f"the run was recorded in {', '.join(sorted(recorded))} and the walk computes in "
            f"{dtype_name(objective.dtype)}, but not all states are stored (keep={log.header.keep!r}), and rebuilding "
            "them needs the recorded precision. Leave out precision=, or record with keep='every_step'."
        )


def _compare(at: AdjointStep, after: ModelState, objective: Objective, found: StepComparison) -> None:
    """Hold the state that the step led to against the recorded one."""
    assert at.taken is not None
    found.steps += 1
    recorded = objective.vector.join([after.params[n] for n in objective.vector.names])
    device = recorded.device
    rebuilt = at.taken.params.to(device)
    same = torch.equal(rebuilt, recorded.to(rebuilt.dtype))
    differing: list[tuple[str, Tensor, Tensor, Tensor]] = []
    if not same:
        before = objective.vector.join([at.before.params[n] for n in objective.vector.names])
        for name, a, b, c in zip(
            objective.vector.names,
            *(objective.vector.split(v) for v in (rebuilt, recorded, before.to(device))),
            strict=True,
        ):
            differing.append((f"parameter {name}", a, b, c))
    _, optimizer = at.taken.state_after(objective.vector)
    for name, entries in optimizer.items():
        for key, value in entries.items():
            kept = after.optimizer.get(name, {}).get(key)
            if (
                kept is not None
                and value.shape == kept.shape
                and not torch.equal(value.to(kept.device, kept.dtype), kept)
            ):
                old = at.before.optimizer.get(name, {}).get(key, torch.zeros_like(kept))
                differing.append((f"optimizer state {key} of {name}", value, kept, old))
    for name, value in at.buffers_after.items():
        kept = after.buffers.get(name)
        if kept is not None and not torch.equal(value.to(kept.device), kept):
            differing.append((f"buffer {name}", value, kept, at.before.buffers.get(name, torch.zeros_like(kept))))
    if not differing:
        found.bitwise += 1
        return
    for label, value, kept, old in differing:
        deviation = _deviation(value, kept, old)
        if not deviation <= found.largest:
            found.largest, found.step, found.tensor = deviation, at.step.index, label
    if not found.largest <= STEP_TOLERANCE:
        raise StepMismatchError(
            f"step {found.step}, done again, leads to another state than the recorded one: {found.tensor} differs by "
            f"{found.largest:.1e} of the step's own size (allowed {STEP_TOLERANCE:.0e}). Usual causes: weights or "
            "gradients changed outside the optimizer (a callback, an overridden optimizer_step or "
            "configure_gradient_clipping), randomness that is not torch's, numpy's or python's global generator, a "
            "model that was changed after training, kernels that are not deterministic (TF32, other hardware)."
        )


def _deviation(value: Tensor, recorded: Tensor, before: Tensor) -> float:
    """Largest difference as a part of the largest recorded movement (of the values themselves, where nothing moved)."""
    recorded, value, before = (t.detach().to("cpu", torch.float64) for t in (recorded, value, before))
    moved = (recorded - before).abs().max()
    size = moved if moved > 0 else recorded.abs().max()
    gap = (value - recorded).abs().max()
    return float(gap / size) if size > 0 else float(gap)
