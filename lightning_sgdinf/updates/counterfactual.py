"""Training again on a selection.

*Counterfactual* training takes the recorded steps again, with the same batches, generators and hyper-parameters, and
gives dropped examples weight 0:

    s[t+1] = Phi_t(s[t], (1/|S_t|) sum_{i in S_t, i kept} grad l(z_i; theta[t]))

The divisor stays ``|S_t|``, so that a dropped example changes nothing but its own term. A batch of which nothing is
left has gradient zero, and momentum and weight decay act on. A layer that couples the examples of a batch (BatchNorm in
training mode) still sees the dropped ones. From the start of the last epoch this is "Retrain Last" of Hara et al.
(2019), from state 0 "Retrain All"; with an empty selection either one leads to the recorded final state, bit for bit.

Training from scratch on the reduced data set (`lightning_sgdinf.updates.scratch`) draws other batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol, final

from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError, UnsupportedRunError
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.averaging import run_and_average, with_average
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.replay.weight_audit import audit_loss
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """The outcome of training again.

    Attributes:
        state: The final state; load it with `load_state` or `with_state`.
        seconds: Wall time of the training.
        first_step: The recorded step it started from; ``None`` if it is another run altogether.
        steps: Number of steps taken; ``None`` if unknown.
    """

    state: ModelState
    seconds: float
    first_step: int | None = None
    steps: int | None = None


class Retraining(Protocol):
    """A selection in, the model trained with it out."""

    def __call__(self, selection: Selection) -> Retrained:
        """Train with a selection.

        Args:
            selection: What to drop and relabel; an empty one is training as before.

        Returns:
            The final state.
        """
        ...


@final
class CounterfactualRetraining:
    """Counterfactual training over the last epochs of a recorded run, or over all of it.

    If the state at the start of these epochs was not kept, the recorded steps lead there from the last one before
    that was. Where a callback averaged the weights, the outcome holds the averaged ones, as the run's final model
    does.

    In a configuration file::

        _target_: lightning_sgdinf.cleansing.CounterfactualRetraining
        _partial_: true
        epochs: 1

    Args:
        retracer: Takes recorded steps again.
        log: The record of the run; stays open while this is used.
        epochs: How many of the last epochs to train again (1: "Retrain Last"), or ``"all"``. An epoch cut short by
            ``max_steps`` counts as one.

    Attributes:
        first_step: The recorded step that training starts from.

    Raises:
        ConfigurationError: ``epochs`` is not in ``1 ..`` number of recorded epochs, or the run has no step.
        StateNotStoredError: No state at or before the first of these epochs was kept.
        UnsupportedRunError: Something other than the optimizer changed the state in these epochs.
    """

    def __init__(self, retracer: Replayer, log: Trajectory, *, epochs: int | Literal["all"] = 1) -> None:
        self._retracer = retracer
        self._log = log
        self.first_step = first_step_of(log, epochs)
        self._stored = _stored_at_or_before(log, self.first_step, epochs)
        _refuse_changes(log, self._stored)
        self._start: ModelState | None = None
        self._recorded: dict[str, Tensor] | None = None
        self._audited = False

    def __call__(self, selection: Selection) -> Retrained:
        """Train with a selection; see `CounterfactualRetraining`.

        Raises:
            ConfigurationError: The selection names an example that the run's data set does not have.
            UnsupportedRunError: The run drew from several data sets.
            UntappedLossError: The loss has a term that example weights do not reach, so that nothing could be dropped.
        """
        count = _num_examples(self._log)
        selection.check(count)
        start = self._start_state()
        began = perf_counter()
        # No weights rather than weights of one: the steps are then taken as recorded, to the bit.
        weights = selection.weights(count) if selection.drop else None
        if weights is not None:
            self._audit(start)
        state = self._run(start, weights, selection.relabel or None)
        return Retrained(
            state=state,
            seconds=perf_counter() - began,
            first_step=self.first_step,
            steps=len(self._log) - self.first_step,
        )

    def _run(self, start: ModelState, weights: Tensor | None, relabel: Mapping[int, int] | None) -> ModelState:
        retracer, log, first = self._retracer, self._log, self.first_step
        if log.average is None:
            return retracer.run(start, first, len(log), weights=weights, relabel=relabel)
        if self._recorded is None:
            self._recorded = run_and_average(retracer, log, start, first)[1]
        end, fed = run_and_average(retracer, log, start, first, weights=weights, relabel=relabel)
        return with_average(end, log.average, fed, self._recorded)

    def _audit(self, start: ModelState) -> None:
        if not self._audited:
            first, last = (self._log.step(t) for t in (self.first_step, len(self._log) - 1))
            audit_loss(self._retracer.objective, start, first, last)
            self._audited = True

    def _start_state(self) -> ModelState:
        # Kept from call to call: a curve or a validated choice starts from it once per count.
        if self._start is None:
            stored = self._log.state(self._stored)
            self._start = self._retracer.run(stored, self._stored, self.first_step)
        return self._start


def first_step_of(log: Trajectory, epochs: int | Literal["all"]) -> int:
    """The first recorded step of the last ``epochs`` epochs.

    Raises:
        ConfigurationError: The run has no step, or not so many epochs.
    """
    total = len(log)
    if total == 0:
        raise ConfigurationError("training again: expected a run with one recorded step or more, got none.")
    if epochs == "all":
        return 0
    first, begun, epoch = total, 0, None
    for step in log.steps(total, 0):
        if step.epoch != epoch:
            if 0 < begun == epochs:
                return first
            begun, epoch = begun + 1, step.epoch
        first = step.index
    if begun == epochs:
        return first
    raise ConfigurationError(f"epochs: expected 1 to {begun} (the recorded epochs) or 'all', got {epochs!r}.")


def _num_examples(log: Trajectory) -> int:
    if len(log.header.datasets) != 1:
        raise UnsupportedRunError(
            "training again: expected a run on one data set, whose examples a selection names, got "
            f"{len(log.header.datasets)}. Combine them (ConcatDataset) and train with one loader."
        )
    return log.header.datasets[0][1]


def _refuse_changes(log: Trajectory, start: int) -> None:
    # What a hook did to the recorded weights is not known for others.
    for step in log.steps(start + 1, len(log)):
        if step.changed:
            raise UnsupportedRunError(
                f"before step {step.index} something other than the optimizer changed {', '.join(step.changed[:3])}, "
                "which training again would not do. Train fewer of the last epochs again, or from scratch."
            )


def _stored_at_or_before(log: Trajectory, step: int, epochs: int | Literal["all"]) -> int:
    # From an earlier stored state the recorded steps lead to the one that is needed.
    earlier = [int(t) for t in log.state_indices if t <= step]
    if not earlier:
        first = int(min(log.state_indices, default=len(log)))
        keep = "every_step" if epochs == "all" else f"last_epochs({epochs})"
        raise StateNotStoredError(
            f"training again from step {step} needs the state there or an earlier one, but the first that was kept "
            f"(keep={log.header.keep!r}) is state {first}. Record with keep={keep!r}"
            + (", or train fewer epochs again." if epochs != 1 else ".")
        )
    return earlier[-1]
