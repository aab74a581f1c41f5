"""The rows of a recorded batch, matched with its examples by running the step on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.replay.row_owners import (
    EVERYBODY,
    NOBODY,
    LossCall,
    LossRows,
    RowOrders,
    RowRecorder,
    are_alike,
    match_rows,
    owners_in,
    regular_owners,
)
from lightning_sgdinf.replay.training_step import TrainingStep

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative difference of losses that are taken for equal; ``COARSE`` in lower precisions."""
COARSE = 2e-2
SAMPLED = 8
"""Examples of a large batch that are run first: where all their rows are in a regular order, so are the others'."""
REPEATED = 8
"""Examples that are run in a batch of their own kind, where they cannot be told apart alone."""


def match_batch(
    objective: TrainingStep,
    step: Step,
    micro: MicroBatch,
    orders: RowOrders,
    others: Sequence[tuple[Step, MicroBatch]] = (),
) -> list[Tensor]:
    """Return the owner of every row of every loss of a recorded batch, and let ``orders`` learn of them.

    Costs up to ``B`` forward passes of one example, twice that where examples are equal; a sample of them where rows
    are in a regular order; nothing for the pass that was matched last. The module stays as it was.

    Args:
        objective: The opened model, at the state that rows are wanted of: a loss may choose them by what it predicts.
        step: A recorded step.
        micro: A pass of it.
        orders: What is known of the run's rows.
        others: Batches that a batch of one example is compared with, to know what does not depend on it.

    Raises:
        UntappedLossError: Rows see several examples and are not as many for each of them; says how many of which loss.
    """
    this = (step.index, micro.batch_idx, micro.rank, micro.example_ids.tobytes())
    there = batch_digest(objective.parameters)
    if orders.last is not None and orders.last[:2] == (this, there):
        return orders.last[2]
    state = [p.detach().clone() for p in objective.parameters]
    with _as_it_was(objective, state):
        calls, owners, alike, apart = _match(objective, step, micro, others)
        if alike:
            _move_a_little(objective)
            calls, owners, *_ = _match(objective, step, micro, others)
    coupled = {call.name for call, owner in zip(calls, owners, strict=True) if bool((owner == NOBODY).any())}
    for number, (call, owner) in enumerate(zip(calls, owners, strict=True)):
        if bool((owner == NOBODY).any()):
            owners[number] = _by_position(call, owner, step, micro, apart)
    orders.learn(calls, owners, len(micro.example_ids), step=step.index)
    orders.coupled = {**dict.fromkeys(coupled, step.index), **orders.coupled}
    orders.last = (this, there, owners)
    return owners


def expect_owners(
    objective: TrainingStep,
    step: Step,
    micro: MicroBatch,
    ask: Callable[[LossRows], Tensor | None],
    orders: RowOrders,
    others: Sequence[tuple[Step, MicroBatch]] = (),
) -> None:
    """Compare the owners that a user says the rows of a batch have with those that are found by running examples alone.

    Args:
        objective: The opened model.
        step: A recorded step.
        micro: A pass of it.
        ask: Returns the owners of a call's rows as the user says them.
        orders: Takes note of losses whose rows cannot be matched.
        others: As for `match_batch`.

    Raises:
        UntappedLossError: A row is another example's; names the row, the examples and the loss.
    """
    state = [p.detach().clone() for p in objective.parameters]
    with _as_it_was(objective, state):
        calls, owners, alike, _ = _match(objective, step, micro, others)
        if alike:
            _move_a_little(objective)
            calls, owners, *_ = _match(objective, step, micro, others)
    rtol = TOLERANCE.get(objective.parameters[0].dtype, COARSE)
    for number, (call, owner) in enumerate(zip(calls, owners, strict=True)):
        given = ask(LossRows(call.name, tuple(call.losses.shape), number)) if call.carries else None
        if given is None:
            continue
        losses, matched, said = call.losses.reshape(-1), owner.reshape(-1), given.reshape(-1)
        if bool(((matched == NOBODY) & (said >= 0)).any()):
            orders.unverified.add(call.name)
        for row in ((matched != said) & (matched != NOBODY)).nonzero().flatten().tolist():
            alike_rows = losses[matched == said[row]]  # equal examples may stand for each other
            if bool(((alike_rows - losses[row]).abs() <= rtol * (1 + losses[row].abs())).any()) or losses[row] == 0:
                continue
            raise UntappedLossError(
                f"step {step.index}: rows= says that row {row} of the {len(losses)} rows of {call.name} (call "
                f"{number}) is {_owner_name(said[row], micro)}, but {_evidence(matched[row], micro)} has that row's "
                f"loss ({losses[row]:.6g}). Return the place of each row's owner among the {len(micro.example_ids)} "
                "examples that were drawn for the batch, -1 for a row that depends on none of them, or None to have "
                "them found out."
            )


def _owner_name(owner: Tensor, micro: MicroBatch) -> str:
    return "no example's" if owner < 0 else f"that of example {micro.example_ids[int(owner)]} (place {int(owner)})"


def _evidence(owner: Tensor, micro: MicroBatch) -> str:
    if owner < 0:
        return "the batch of any other examples"
    return f"example {micro.example_ids[int(owner)]} (place {int(owner)}), run alone in eval mode,"


def _match(
    objective: TrainingStep, step: Step, micro: MicroBatch, others: Sequence[tuple[Step, MicroBatch]]
) -> tuple[list[LossCall], list[Tensor], bool, bool]:
    """Return the calls and their owners at the parameters as they are.

    And true if rows of two examples are equal; and true if examples could be run alone.
    """
    rtol = TOLERANCE.get(objective.parameters[0].dtype, COARSE)
    recorder = RowRecorder()
    _record(objective, step, micro, objective.batch(step, micro), recorder)
    calls, count = recorder.calls, len(micro.example_ids)
    if count > 2 * SAMPLED:
        places = torch.linspace(0, count - 1, SAMPLED).round().long().tolist()
        singles = objective.source.singles(micro, step=step.index, places=places)
        sample = [_record_single(objective, step, micro, single) for single in singles]
        owners = regular_owners(calls, sample, places, count, rtol=rtol)
        if owners is not None and not are_alike(sample, rtol=rtol):
            return calls, owners, False, True
    singles = objective.source.singles(micro, step=step.index)
    alone = [_record_single(objective, step, micro, single) for single in singles]
    if len(singles) == 1:
        compared = _record_other(objective, step, micro, others)
        owners = [owner.clamp(max=0) for owner in match_rows(calls, [*alone, *compared], rtol=rtol)]
    else:
        owners = match_rows(calls, alone, rtol=rtol)
    for call, owner in zip(calls, owners, strict=True):
        if not call.carries:
            owner.masked_fill_(owner == NOBODY, EVERYBODY)
    if any(bool((owner == NOBODY).any()) for owner in owners):
        _match_repeated(objective, step, micro, calls, owners, rtol)
    return calls, owners, are_alike(alone, rtol=rtol), any(alone)


def _record_other(
    objective: TrainingStep, step: Step, micro: MicroBatch, others: Sequence[tuple[Step, MicroBatch]]
) -> list[list[LossCall]]:
    """Return the calls of the first batch of other examples, if there is one."""
    for other_step, other in others:
        if set(other.example_ids.tolist()) != set(micro.example_ids.tolist()):
            recorder = RowRecorder()
            _record(objective, step, micro, objective.batch(other_step, other), recorder)
            return [recorder.calls]
    return []


def _by_position(call: LossCall, owner: Tensor, step: Step, micro: MicroBatch, apart: bool) -> Tensor:
    """Return owners by their place, for rows that see several examples: such scores are of rows."""
    rows, count = owner.numel(), len(micro.example_ids)
    if not rows or rows % count or (rows != count and not apart):
        why = f"{int((owner == NOBODY).sum())} of them depend on several examples even in eval mode, so no example owns"
        if not apart:
            why = "no batch that the step takes can be made of one example alone, so it is not known which example owns"
        raise UntappedLossError(
            f"step {step.index}: {call.name} sees {rows} rows for the {count} examples "
            f"{micro.example_ids[:4].tolist()} ..., and {why} them. Say whose they are, InfluenceRunner(rows=...), or "
            "give the LightningModule a method per_example_loss(batch, batch_idx) that returns the loss of each "
            "example, shape [B]."
        )
    return torch.where(owner == NOBODY, owners_in("blocks", rows, count).view(owner.shape), owner)


def _match_repeated(
    objective: TrainingStep,
    step: Step,
    micro: MicroBatch,
    calls: Sequence[LossCall],
    owners: Sequence[Tensor],
    rtol: float,
) -> None:
    """Fill in owners of rows that differ when their example is alone, but not among others of its kind.

    A step that draws random numbers for each row draws them by the row's place, which an example alone does not have;
    in a batch of one example as often as there were examples its own rows are where they were.
    """
    for i in range(min(len(micro.example_ids), REPEATED)):
        repeated = objective.source.repeated(micro, i, step=step.index)
        again = _record_single(objective, step, micro, repeated)
        for call, other, owner in zip(calls, again, owners, strict=False):
            if call.name == other.name and call.losses.shape == other.losses.shape:
                same = torch.isclose(call.losses, other.losses, rtol=rtol, atol=rtol)
                owner[same & (owner == NOBODY)] = i
    if len(micro.example_ids) <= REPEATED:
        return
    for owner in owners:  # of large batches a sample is run; a regular order of theirs is that of all
        rows, count = owner.numel(), len(micro.example_ids)
        flat = owner.view(-1)
        for order in ("blocks", "strided"):
            if not rows or rows % count:
                continue
            regular = owners_in(order, rows, count)
            if torch.equal(flat[regular < REPEATED], regular[regular < REPEATED]):
                flat.copy_(torch.where(flat == NOBODY, regular, flat))
                break


def _record(objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any, recorder: RowRecorder) -> None:
    quiet = replace(step, eval_modules=objective.parts)
    objective.prepare(quiet, micro)
    random_state.restore(micro.stepped_with)
    objective.run(quiet, micro.batch_idx, batch, tap=recorder)


def _record_single(objective: TrainingStep, step: Step, micro: MicroBatch, batch: Any) -> list[LossCall]:
    """Return the calls of one example, as far as it gets; none if a collate function drops what it cannot read."""
    recorder = RowRecorder()
    if batch is not None:
        with suppress(Exception):  # whatever code of the user's does with a batch of one
            objective.prepare(step, micro)  # for hooks that look where training is
            random_state.restore(micro.transferred_with)
            _record(objective, step, micro, objective.bring(batch), recorder)
    return recorder.calls


@contextmanager
def _as_it_was(objective: TrainingStep, params: Sequence[Tensor]) -> Iterator[None]:
    buffers = objective.read_buffers()
    with random_state.preserved():
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(objective.parameters, params, strict=True):
                    parameter.copy_(value)
                objective.load_buffers(buffers)


def _move_a_little(objective: TrainingStep) -> None:
    """Move parameters at random, so that rows differ that are equal by initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in objective.parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
            parameter.add_(noise * (0.02 + 0.05 * parameter.abs()))
