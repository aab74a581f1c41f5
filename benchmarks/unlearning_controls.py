"""Controls for `ExtrapolatedReplay`: the same line, to the same stop, from directions that know less.

They are methods of the study on unlearning, in whose table they stand beside the others::

    PYTHONPATH=. sgdinf -m experiment=unlearning seed=0,1,2,3,4 'job.only=[extrapolated,fine_tuned,paired]' \
        +job.methods.fine_tuned._target_=benchmarks.unlearning_controls.FineTunedLine \
        +job.methods.paired._target_=benchmarks.unlearning_controls.PairedEpochAfter
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

from torch import Tensor

from lightning_sgdinf.errors import ForgettingError
from lightning_sgdinf.replay import CounterfactualRun, OpenedRun, first_step_of
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Updated
from lightning_sgdinf.updates.extrapolated import FARTHEST, ExtrapolatedUpdate
from lightning_sgdinf.updates.forgotten import Forgotten
from lightning_sgdinf.updates.line import extrapolated, on_device, running_variances, shortest
from lightning_sgdinf.updates.post_hoc import FineTuning


@dataclass(frozen=True)
class FineTunedLine:
    """An epoch of training on without the set, from the end, extrapolated."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        began = perf_counter()
        tuned = FineTuning().update(run, selection)
        return to_the_stop(run, selection, on_device(run, tuned.state), tuned.epochs or 0.0, began)


@dataclass(frozen=True)
class PairedEpochAfter:
    """The last epoch's steps from the end on, with and without the set, and their difference extrapolated."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        began, last = perf_counter(), first_step_of(run.log, 1)
        again = CounterfactualRun(run, last, start=on_device(run, run.log.state(len(run.log))))
        with_it, without = again.run(), again.run(weights=selection.weights(run.examples))
        other = shifted(run.model, {n: v - with_it.params[n] for n, v in without.params.items()})
        return to_the_stop(run, selection, other, again.replayer.gradients / run.examples, began)


def shifted(model: ModelState, difference: dict[str, Tensor]) -> ModelState:
    """A model with something added to its parameters."""
    moved = {n: v + difference[n].to(v.device, v.dtype) for n, v in model.params.items()}
    return replace(model, params=moved, optimizer={})


def to_the_stop(run: OpenedRun, selection: Selection, other: ModelState, cost: float, began: float) -> Updated:
    """The first point from the other model on at which the set is forgotten."""
    forgotten = Forgotten()
    watched = forgotten.on(run, selection.drop)
    final, positive = on_device(run, run.model), running_variances(run.objective.module)

    def stops(factor: float) -> bool:
        return watched(extrapolated(final, other, factor, positive)) <= forgotten.accuracy

    factor = 1.0 if stops(1.0) else shortest(stops, low=1.0, high=1.5, growth=1.5, most=FARTHEST)
    if factor is None:
        raise ForgettingError(f"not forgotten at {FARTHEST:g} times the difference")
    state = extrapolated(final, other, factor, positive)
    return ExtrapolatedUpdate(
        state=state,
        seconds=perf_counter() - began,
        epochs=cost + watched.epochs,
        notes=(f"The difference was taken {factor:.3g} times.",),
        factor=factor,
        last_epochs=1,
        accuracy=watched(state),
    )
