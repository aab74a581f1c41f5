"""A batch's rows sharded over several processes.

Each process differentiates its own rows; gradients and Hessian-vector products are summed, so all hold the same
adjoint. That is right where the loss is a mean over rows that do not see each other. BatchNorm in training mode,
dropout, in-batch losses and class weights are not like that, so the first step of a walk compares the summed gradient
of the shards with that of the whole batch, and rows are only sharded if they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_sgdinf.log import Step
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class RowShards:
    """One process's rows of each batch.

    Attributes:
        rank: Which process this is.
        world: How many there are.
        all_sum: Sums a tensor over all processes.
    """

    rank: int
    world: int
    all_sum: Callable[[Tensor], Tensor]

    def rows(self, count: int) -> slice:
        """Return the rows of a batch of ``count`` that are this process's; contiguous, sizes differ by one at most."""
        each, more = divmod(count, self.world)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def part(self, batch: Any, count: int) -> Any:
        """Return the batch's rows of this process: every tensor with ``count`` rows is cut."""
        rows = self.rows(count)
        return tree_map_only(Tensor, lambda t: t[rows] if t.ndim and t.shape[0] == count else t, batch)

    def fraction(self, count: int) -> float:
        """Return the factor of this process's mean loss in the mean of the whole batch."""
        rows = self.rows(count)
        return (rows.stop - rows.start) / count

    def scatter(self, slopes: Tensor, count: int) -> Tensor:
        """Put this process's slopes ``[Q, rows]`` in their places of the whole batch ``[Q, count]``, zero elsewhere."""
        whole = torch.zeros(slopes.shape[0], count, dtype=slopes.dtype, device=slopes.device)
        whole[:, self.rows(count)] = slopes
        return whole

    def sum(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Sum each tensor over all processes, in one exchange; ``None`` must be ``None`` everywhere."""
        present = [t for t in tensors if t is not None]
        if not present:
            return list(tensors)
        total = self.all_sum(torch.cat([t.reshape(-1) for t in present]))
        parts = iter(total.split([t.numel() for t in present]))
        return [None if t is None else next(parts).view(t.shape) for t in tensors]


def rows_are_separate(
    objective: Objective, shards: RowShards, state: ModelState, step: Step, *, tolerance: float = 1e-5
) -> bool:
    """Return true if the gradient of a step is the sum of its shards' gradients.

    Args:
        objective: The opened model.
        shards: This process's rows.
        state: Where to evaluate.
        step: A recorded step.
        tolerance: Largest difference, as a part of the gradient's norm (float32; a millionth of it in float64).
    """
    micro = step.first_pass
    count = len(micro.example_ids)
    if count < shards.world or not objective.orders.settled:
        return False
    gradients: list[Tensor] = []
    for own in (False, True):
        objective.load(state)
        batch = objective.batch(step, micro)
        loss = objective.trace(step, micro, shards.part(batch, count) if own else batch).loss
        grads = objective.gradient(loss * shards.fraction(count) if own else loss)
        joined = objective.vector.join_gradients(grads, objective.parameters).double()
        gradients.append(shards.all_sum(joined) if own else joined)
    scale = tolerance if objective.parameters[0].dtype != torch.float64 else tolerance * 1e-6
    return bool((gradients[0] - gradients[1]).norm() <= scale * gradients[0].norm())
