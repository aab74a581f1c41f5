"""The recorded run taken again as it would have been: without some examples, with other labels or other inputs.

The recorded steps are taken again with the same batches, generators and hyper-parameters and other example weights:

    s[t+1] = Phi_t(s[t], (1/|S_t|) sum_{i in S_t} w_i grad l(z_i; theta[t]))

A weight-averaging callback did ``average <- a_t average + b_t params`` after some steps, so the average at the end is
linear in what the steps fed it:

    average' = average + sum_t c_t (params'[t+1] - params[t+1]),    c_t = b_t prod_{s > t} a_s

with ``params`` of the recorded steps and ``params'`` of those taken again. The average at the first of them is not
needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_sgdinf.errors import StateNotStoredError
from lightning_sgdinf.log import Step, Trajectory
from lightning_sgdinf.replay.edits import Edit
from lightning_sgdinf.replay.opened import OpenedRun
from lightning_sgdinf.replay.replayer import Divisor, Replayer, refuse_changes
from lightning_sgdinf.replay.untapped import expect_mean, expect_penalty
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class Course:
    """A run on its way.

    Attributes:
        state: Where it is.
        fed: What its steps so far fed a running average of the weights, float64, by name; empty if nothing.
    """

    state: ModelState
    fed: Mapping[str, Tensor] = field(default_factory=dict)


class CounterfactualRun:
    """The recorded run from a step on, ready to be taken again in other ways.

    If the state there was not kept, the recorded steps lead to it from the last one before that was.

    Args:
        run: The recorded run.
        first_step: Where the ways part.
        last_step: One past the last step taken; the end of the run if ``None``.
        start: The state before ``first_step``, if it is at hand.
        divisor: ``"kept"``: the losses of a batch are divided by the number of all its examples; ``"reduced"``, of
            those that are left.

    Attributes:
        replayer: Takes the steps; counts the example gradients that were computed.

    Raises:
        ConfigurationError: The steps are not in the log.
        StateNotStoredError: No state at or before ``first_step`` was kept.
        UnsupportedRunError: Something other than the optimizer changed the state on the way.
    """

    def __init__(
        self,
        run: OpenedRun,
        first_step: int = 0,
        last_step: int | None = None,
        *,
        start: ModelState | None = None,
        divisor: Divisor = "kept",
    ) -> None:
        self._log = run.log
        self.first_step, self.last_step = first_step, len(run.log) if last_step is None else last_step
        self.replayer = Replayer(run.log, run.objective, divisor=divisor)
        stored = first_step if start is not None else stored_at_or_before(run.log, first_step)
        for step in run.log.steps(min(stored + 1, self.last_step), self.last_step):
            refuse_changes(step)
        self._stored, self._start = stored, None if start is None else Course(start)
        self._base: Course | None = None

    @property
    def start(self) -> Course:
        """Return the recorded run before ``first_step``."""
        if self._start is None:  # computed once: a curve or a validated choice starts from it once per count
            stored = Course(self._log.state(self._stored))
            self._start = Course(self.take(stored, self._stored, self.first_step).state)
        return self._start

    @property
    def base(self) -> Course:
        """Return the recorded run at its end, taken again from the start."""
        if self._base is None:
            self._base = self.take(self.start, self.first_step, self.last_step)
        return self._base

    def run(self, *, weights: Tensor | None = None, edit: Edit | None = None) -> ModelState:
        """Take the steps and return the final state, with averaged weights where the run's final model has them.

        Args:
            weights: Weight of each training example's loss, ``[N]``; 0 leaves it out. ``None`` takes the steps as
                recorded, to the bit.
            edit: Changes batches before they are taken: other labels, other inputs.
        """
        return self.averaged(self.take(self.start, self.first_step, self.last_step, weights=weights, edit=edit))

    def averaged(self, end: Course, base: Course | None = None) -> ModelState:
        """Return the state at the end of a course, with averaged weights where the run's final model has them.

        Args:
            end: Where the course came to.
            base: Where the recorded run came to, if that is at hand.
        """
        average = self._log.average
        if average is None or self.last_step < len(self._log):
            return end.state
        return with_average(end.state, average, end.fed, (base or self.base).fed)

    def take(
        self, course: Course, start: int, stop: int, *, weights: Tensor | None = None, edit: Edit | None = None
    ) -> Course:
        """Take steps ``start .. stop - 1``; arguments as for `run`."""
        if start == stop:
            return course
        if self._log.average is None:
            return Course(self.replayer.run(course.state, start, stop, weights=weights, edit=edit))
        state, fed = course.state, course.fed
        for step in self._log.steps(start, stop):
            state = self.replayer.advance(state, step, weights=weights, edit=edit)
            fed = feed(fed, {**state.params, **state.buffers}, step)
        return Course(state, fed)


def audit_steps(run: OpenedRun, first_step: int = 0) -> None:
    """Make sure, once, that weights reach every step from one on, where a pass alone does not show it.

    That is where the loss has terms without weights, or where ``per_example_loss`` stands for it. Costs a run of these
    steps, and two or three gradients more for each.

    Raises:
        UntappedLossError: A term depends on the data and not on example weights; names the step.
    """
    audit, objective, log = run.audit(), run.objective, run.log
    by_mean = objective.per_example_loss is not None
    if not by_mean and not objective.audits.has_unweighted_paths:
        return

    def compute() -> None:
        replayer, start = Replayer(log, objective), stored_at_or_before(log, first_step)
        state = log.state(start)
        for step in log.steps(start, len(log)):
            if step.index >= first_step:
                objective.load(state)
                for micro in step.micro_batches:
                    if by_mean:
                        expect_mean(objective, step, micro)
                    else:
                        expect_penalty(objective, step, micro, audit.taps, objective.others, objective.audits.scaled)
            state = replayer.advance(state, step)

    run.once(("audited steps", first_step), compute)


def stored_at_or_before(log: Trajectory, step: int) -> int:
    """Return the index of the last stored state at or before a step.

    Raises:
        StateNotStoredError: There is none; says which ``keep=`` stores one.
    """
    earlier = [int(t) for t in log.state_indices if t <= step]
    if not earlier:
        first = int(min(log.state_indices, default=len(log)))
        raise StateNotStoredError(
            f"taking the run again from step {step} needs the state there or an earlier one, but the first that was "
            f"kept (keep={log.header.keep!r}) is state {first}. Record with keep='every_step' or 'every(k)', or "
            "'last_epochs(n)' for the last epochs alone; or begin at a later step (fewer epochs, first_step=)."
        )
    return earlier[-1]


def feed(fed: Mapping[str, Tensor], now: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
    """Return what the steps so far fed the average, after one more: ``a fed + b now``, float64, by name."""
    if step.average is None:
        return dict(fed)
    a, b = step.average
    floats = {n: v.detach().double() for n, v in now.items() if v.is_floating_point()}
    return {n: b * v + (a * fed[n] if n in fed else 0.0) for n, v in floats.items()}


def with_average(
    end: ModelState, average: Mapping[str, Tensor], fed: Mapping[str, Tensor], recorded: Mapping[str, Tensor]
) -> ModelState:
    """Put averaged values in the place of the last ones.

    Args:
        end: The last state of the steps taken again.
        average: The recorded average.
        fed: What these steps fed it.
        recorded: What the recorded steps fed it.

    Returns:
        The state; where both fed the same, the recorded average bit for bit.
    """

    def averaged(name: str, value: Tensor) -> Tensor:
        if name not in average:
            return value
        base = average[name].to(value.device)
        if name not in fed or not base.is_floating_point():
            return base.clone()
        return (base.double() + (fed[name] - recorded[name])).to(value.dtype)

    return replace(
        end,
        params={n: averaged(n, v) for n, v in end.params.items()},
        buffers={n: averaged(n, v) for n, v in end.buffers.items()},
    )
