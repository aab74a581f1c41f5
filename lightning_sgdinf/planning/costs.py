"""The costs of a run as far as they are known without a trial: from a module alone, or from a log that is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.log.expected_size import costs_of_layout, costs_of_log
from lightning_sgdinf.planning.untouched import copy_of_module
from lightning_sgdinf.record.plan import RunCosts
from lightning_sgdinf.record.state_reader import StateReader

_UNCOMPRESSED = (
    "Bytes: of states without compression, since there were no data to take a step on; ids and random states, some "
    "hundred bytes a step, are not counted. Pass the loaders for measured bytes, seconds and memory."
)


def bare_costs(model: nn.Module, codec: str) -> RunCosts:
    """Return what is known of a LightningModule without any data: the sizes of its states, uncompressed.

    The optimizer's own state is made by a step of a copy with gradients of zero.

    Args:
        model: The module; is not changed.
        codec: Name of the states' codec.
    """
    notes = [_UNCOMPRESSED]
    with random_state.preserved():
        copy = copy_of_module(model)
        try:
            optimizer = _optimizer(copy.configure_optimizers())
            for parameter in copy.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            optimizer.step()
        except Exception as error:  # of a module that asks its Trainer, or an optimizer that wants a closure
            notes.append(
                f"Without what the optimizer keeps, which could not be made ({type(error).__name__}: {error})."
            )
            optimizer = torch.optim.SGD([p for p in copy.parameters() if p.requires_grad], lr=0.0)
        layout, tensors = StateReader(copy, optimizer).read()
    return RunCosts(
        parameters=sum(spec.numel for spec in layout.specs if spec.part == "param"),
        state_bytes=sum(t.numel() * t.element_size() for t in tensors),
        log=costs_of_layout(layout, codec),
        measured_on=tuple(notes),
    )


def recorded_costs(log: RunLog, codec: str) -> RunCosts:
    """Return what a log says of a run like its own: bytes only.

    Args:
        log: Of a short run.
        codec: Name of the codec in which the long one is to be stored.

    Raises:
        UnsupportedRunError: It holds no final state.
    """
    if not log.finished or not len(log):
        raise UnsupportedRunError(
            f"{log.path} has no state after its last step ({log.end_reason or 'it has not ended'}), so the bytes of a "
            "longer run cannot be forecast from it. Record a few steps to the end: Trainer(max_steps=5)"
        )
    state = log.state(len(log))
    costs = costs_of_log(log, codec)
    return RunCosts(
        parameters=sum(math.prod(shape) for _, shape, _ in log.header.parameters),
        state_bytes=state.nbytes,
        log=costs,
        steps_per_epoch=_epoch_of(log),
        measured_on=(of_bytes(costs.codec, costs.rows, log),),
    )


def of_bytes(codec: str, rows: Any, log: RunLog) -> str:
    """Return on what bytes were measured, in a sentence."""
    if not rows:
        return (
            f"Bytes: codec {codec!r}, states taken as if nothing could be compressed: no two of {log.path.name} follow "
            "one another."
        )
    steps = ", ".join(str(distance) for distance in sorted(rows))
    return (
        f"Bytes: codec {codec!r} on states up to number {len(log)}, {steps} steps apart; more is extrapolated. States "
        "later in training usually compress better."
    )


def _epoch_of(log: RunLog) -> int | None:
    """Return the steps of an epoch; ``None`` if the log does not have a whole one."""
    epochs = [step.epoch for step in log.steps(0, len(log))]
    whole = epochs.count(epochs[0])
    return whole if epochs[-1] != epochs[0] else None


def _optimizer(configured: Any) -> torch.optim.Optimizer:
    """Return the first optimizer of what ``configure_optimizers`` gave."""
    return next(_optimizers(configured))


def _optimizers(configured: Any) -> Iterator[torch.optim.Optimizer]:
    if isinstance(configured, torch.optim.Optimizer):
        yield configured
    elif isinstance(configured, dict):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, Sequence):
        for part in configured:
            yield from _optimizers(part)
