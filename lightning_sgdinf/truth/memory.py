"""The number of models that fit into memory at once, from the memory that one of them is seen to need."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.replay import OpenedRun


def clock(device: torch.device) -> float:
    """Return the seconds by which costs on a device are compared.

    On the processor its own time, which other work on the machine hardly changes; elsewhere that of the wall.
    """
    return time.process_time() if device.type == "cpu" else time.perf_counter()


STATES = 4
"""State, gradient and temporaries of optimizer and clipping, in sizes of a state."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory that one replica needs, in bytes.

    Attributes:
        step: While it takes a step.
        query: While the query is computed for it.
        query_seconds: Time that takes.
    """

    step: int
    query: int
    query_seconds: float

    def replicas(self, memory_bytes: int) -> int:
        """Return how many replicas take a step at once."""
        return max(2, memory_bytes // max(self.step, 1))

    def queries(self, memory_bytes: int) -> int:
        """Return for how many replicas the query is computed at once."""
        return max(1, memory_bytes // max(self.query, 1))


def measure_footprint(run: OpenedRun, query: BoundQuery) -> Footprint:
    """Measure one model by the last step's pass and one computation of the query."""
    objective, state, step = run.objective, run.final, run.log.step(len(run.log) - 1)
    state_bytes = state.nbytes
    micro = step.micro_batches[0]
    objective.load(state)
    with _SavedTensors() as step_pass:
        objective.trace(step, micro, objective.batch(step, micro))
    began = clock(run.host.device)
    with _SavedTensors() as query_pass:
        query.value(state)
    seconds = clock(run.host.device) - began
    batches = max(1, len(query.data.loader))
    # A replica remembers which examples it trains on. Backward passes make as much again as forward passes save.
    return Footprint(
        STATES * state_bytes + run.examples + 2 * step_pass.bytes,
        state_bytes + 2 * query_pass.bytes // batches,
        seconds,
    )


class _SavedTensors:
    """Adds up what autograd saves while it is entered."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._add, lambda saved: saved)

    def __enter__(self) -> _SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _add(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor
