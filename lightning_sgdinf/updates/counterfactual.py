"""The recorded run taken again with a selection.

*Counterfactual* training takes the recorded steps again, with the same batches, generators and hyper-parameters, and
gives dropped examples weight 0:

    s[t+1] = Phi_t(s[t], (1/|S_t|) sum_{i in S_t, i kept} grad l(z_i; theta[t]))

The divisor stays ``|S_t|``, so that a dropped example changes nothing but its own term. A batch of which nothing is
left has gradient zero, and momentum and weight decay act on. A layer that couples the examples of a batch (BatchNorm in
training mode) still sees the dropped ones. From the start of the last epoch this is "Retrain Last" of Hara et al.
(2019), from state 0 "Retrain All"; with an empty selection either one leads to the recorded final state, bit for bit.

Training on the reduced data set (`lightning_sgdinf.updates.FreshTraining`) draws other batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.replay import (
    CounterfactualRun,
    Edit,
    OpenedRun,
    ReplacedInputs,
    ReplaceLabels,
    audit_steps,
    first_draw,
    first_step_of,
    one_after_another,
    relabelled,
    replace_second,
)
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates.base import Updated


@dataclass(frozen=True, slots=True)
class CounterfactualReplay:
    """The last epochs of the recorded run, or all of it, taken again: with ``"all"``, what would have been, exactly.

    If the state at the start of these epochs was not kept, the recorded steps lead there from the last one before
    that was. Where a callback averaged the weights, the outcome holds the averaged ones, as the run's final model
    does.

    In a configuration file::

        _target_: lightning_sgdinf.updates.CounterfactualReplay
        epochs: 1

    Attributes:
        epochs: How many of the last epochs to take again (1: "Retrain Last"), ``"all"``, or ``"first_draw"``: from the
            first step that drew an example of the selection, with the same outcome as ``"all"``. An epoch cut short by
            ``max_steps`` counts as one.
        replace_labels: How labels are changed in a batch, for selections that relabel.
        inputs: Examples that get other inputs, beside what the selection says.
    """

    epochs: int | Literal["all", "first_draw"] = "all"
    replace_labels: ReplaceLabels = replace_second
    inputs: ReplacedInputs | None = None

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        """Take the run again with the selection, see `ModelUpdate`.

        Raises:
            ConfigurationError: ``epochs`` is not in ``1 ..`` number of recorded epochs, the run has no step, or the
                selection names an example that the run's data set does not have.
            StateNotStoredError: No state at or before the first of these epochs was kept.
            UnsupportedRunError: Something other than the optimizer changed the state in these epochs, or the run drew
                from several data sets.
            UntappedLossError: The loss has a term that example weights do not reach, so that nothing could be dropped.
        """
        expect_one_data_set(run.log)
        selection.check(run.examples)
        others = () if self.inputs is None else tuple(self.inputs.inputs)
        Selection(drop=others).check(run.examples)
        if self.epochs == "first_draw":
            first_step_of(run.log, "all")
            first = first_draw(run.log, {*selection.drop, *selection.relabel, *others})
        else:
            first = first_step_of(run.log, self.epochs)
        with random_state.preserved():
            began = perf_counter()
            counterfactual = run_from(run, first)
            before = counterfactual.replayer.gradients
            weights, edit = changes_of(run, counterfactual, selection, self.replace_labels, self.inputs)
            state = counterfactual.run(weights=weights, edit=edit)
        return Updated(
            state=state,
            seconds=perf_counter() - began,
            epochs=(counterfactual.replayer.gradients - before) / run.examples,
            notes=(f"Recorded steps {first} to {len(run.log) - 1} were taken again.",),
        )


def run_from(run: OpenedRun, first_step: int) -> CounterfactualRun:
    """Return the recorded run from a step on, one for all selections."""
    return run.once(("counterfactual", first_step), lambda: CounterfactualRun(run, first_step))


def changes_of(
    run: OpenedRun,
    counterfactual: CounterfactualRun,
    selection: Selection,
    replace_labels: ReplaceLabels = replace_second,
    inputs: ReplacedInputs | None = None,
) -> tuple[Tensor | None, Edit | None]:
    """Return the example weights and the edit of batches that a selection means, the loss audited if it drops."""
    # No weights rather than weights of one: the steps are then taken as recorded, to the bit.
    weights = selection.weights(run.examples) if selection.drop else None
    if weights is not None:
        audit_steps(run, counterfactual.first_step)
    labels = relabelled(selection.relabel, replace_labels) if selection.relabel else None
    return weights, one_after_another(inputs, labels)


def expect_one_data_set(log: Trajectory) -> None:
    """Refuse a run whose examples ids do not name.

    Raises:
        UnsupportedRunError: It drew from several data sets.
    """
    if len(log.header.datasets) != 1:
        raise UnsupportedRunError(
            "training again: expected a run on one data set, whose examples a selection names, got "
            f"{len(log.header.datasets)}. Combine them (ConcatDataset) and train with one loader."
        )
