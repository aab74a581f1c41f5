"""A batch with some examples exchanged, and the gradients of it with and without example weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.batch_structure import map_tensors
from lightning_sgdinf.errors import NonFiniteError, UntappedLossError
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay import BatchSource, Objective
from lightning_sgdinf.replay.example_weights import LossTap, Values
from lightning_sgdinf.replay.pass_structure import PassStructure

FITTED = 4
"""Calls of loss functions whose divisors are fitted one by one; of more, one number is fitted for all."""
ROUNDING = 1e-9
"""Disagreement below which nothing has to be fitted, in float64; elsewhere a hundred roundings."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A batch after some of its examples were exchanged.

    Attributes:
        places: Where they stand.
        source: Gives the batch.
        micro: The pass, with the new ids.
        batch: As ``training_step`` gets it.
        same_shapes: True if its tensors have the shapes of those before.
    """

    places: tuple[int, ...]
    source: BatchSource
    micro: MicroBatch
    batch: Any
    same_shapes: bool


@dataclass(frozen=True, slots=True)
class SwapOutcome:
    """The outcome of one exchange.

    Attributes:
        deviation: Disagreement of the two changes, as a part of what the exchanged examples add to the gradient.
        informative: False if they add nothing.
        other_rows: True if the loss took other rows of the examples that stayed.
    """

    deviation: float
    informative: bool
    other_rows: bool


def compare_exchange(
    objective: Objective, step: Step, micro: MicroBatch, exchange: Exchange, structure: PassStructure
) -> SwapOutcome | None:
    """Compare how the plain gradient changes with what weights say of the exchanged examples.

    Args:
        objective: The opened model, at the state to look at.
        step: The step, in the modes to look at.
        micro: The recorded pass.
        exchange: The batch to compare with.
        structure: Of the pass.

    Returns:
        The outcome; ``None`` if a pass fails in these modes.
    """
    count, places = len(micro.example_ids), list(exchange.places)
    chosen = torch.zeros(count, dtype=objective.parameters[0].dtype, device=objective.host.device)
    chosen[places] = 1.0
    before = _Passes(objective, step, micro, objective.source)
    after = _Passes(objective, step, exchange.micro, exchange.source)
    try:
        rest = before.gradient()  # one vector for all, for large models
        rounding = 100 * torch.finfo(objective.parameters[0].dtype).eps * rest.norm()
        rest = after.gradient(into=rest.neg_())
        went = before.of_examples(chosen, structure)
        size = went.norm()
        rest += went
        del went
        came = after.of_examples(chosen, structure)
        size = size + came.norm()
        rest -= came
        del came
        scale = torch.maximum(size, rounding).clamp_min(torch.finfo(torch.float64).tiny)
        deviation = float(rest.norm() / scale)
        if deviation > max(ROUNDING, 100 * torch.finfo(objective.parameters[0].dtype).eps):
            calls = range(len(structure.calls)) if len(structure.calls) <= FITTED else [None]
            stayed = torch.stack([before.of_examples(1 - chosen, structure, only=k) for k in calls], dim=1)
            fitted = stayed @ torch.linalg.lstsq(stayed, rest[:, None], driver="gelsd").solution
            deviation = min(deviation, float((rest - fitted[:, 0]).norm() / scale))
    except (UntappedLossError, NonFiniteError, RuntimeError, ValueError, TypeError, IndexError, KeyError):
        return None  # in eval mode a step may do anything else
    return SwapOutcome(deviation, bool(size > rounding), _other_rows(before.rows, after.rows, places))


class _Passes:
    """Gradients of a pass, with and without weights, always from the same buffers and generators."""

    def __init__(self, objective: Objective, step: Step, micro: MicroBatch, source: BatchSource) -> None:
        self._objective, self._step, self._micro, self._source = objective, step, micro, source
        with using_source(objective, source):
            self._batch = objective.batch(step, micro)
        self._buffers = objective.read_buffers()
        self.rows: Sequence[Tensor] | None = None  # owners, where they had to be matched

    def gradient(self, into: Tensor | None = None) -> Tensor:
        """Return the plain gradient, added to a vector if there is one."""
        self._begin()
        return self._joined(self._objective.run(self._step, self._micro.batch_idx, self._copy()).loss, into)

    def of_examples(self, weights: Tensor, structure: PassStructure, *, only: int | None = None) -> Tensor:
        """Return what weights say some examples add to the gradient.

        Args:
            weights: Of the examples, ``[B]``.
            structure: Of the pass.
            only: Number of the one loss call to count.
        """
        if not structure.has_unweighted_terms:
            return self._weighted(weights, structure, only)
        rest = self._weighted(torch.zeros_like(weights), structure, only).neg_()
        return self._weighted(weights, structure, only, rest)

    def _weighted(
        self, weights: Tensor, structure: PassStructure, only: int | None, into: Tensor | None = None
    ) -> Tensor:
        objective, step, micro = self._objective, self._step, self._micro
        audited = objective.audits.known.get(structure)
        values: Values = "none" if audited is None else audited.scaled

        def take(owners: Sequence[Tensor] | None) -> Tensor:
            batch, tap = self._copy(), None
            if objective.per_example_loss is None:
                ask = objective.asker(step, micro, self._batch)
                tap = LossTap(weights, objective.orders, owners, ask=ask, only=only, values=values)
            return objective.run(step, micro.batch_idx, batch, weights, tap=tap).loss

        with using_source(objective, self._source):
            self._begin()
            loss = objective.owned(step, micro, take, again=self._begin)
        last = objective.orders.last
        if last is not None and last[0] == (step.index, micro.batch_idx, micro.rank, micro.example_ids.tobytes()):
            self.rows = last[2]
        return self._joined(loss, into)

    def _begin(self) -> None:
        self._objective.load_buffers(self._buffers)
        self._objective.prepare(self._step, self._micro)
        random_state.restore(self._micro.stepped_with)

    def _copy(self) -> Any:
        return map_tensors(self._batch, torch.clone)

    def _joined(self, loss: Tensor, into: Tensor | None) -> Tensor:
        objective = self._objective
        grads = objective.gradient(loss)
        joined = torch.zeros(objective.vector.size, dtype=torch.float64, device=loss.device) if into is None else into
        objective.vector.add_to(joined, grads)
        if not bool(torch.isfinite(joined).all()):
            raise NonFiniteError("a gradient is not finite")
        return joined


def _other_rows(before: Sequence[Tensor] | None, after: Sequence[Tensor] | None, places: Sequence[int]) -> bool:
    """Return true if examples that stayed have other numbers of rows afterwards."""
    if before is None or after is None:
        return False

    def rows(owners: Sequence[Tensor]) -> list[list[int]]:
        flat = [owner[owner >= 0].reshape(-1) for owner in owners]
        counts = [
            torch.bincount(owner, minlength=1 + max((int(f.max()) for f in flat if len(f)), default=0))
            for owner in flat
        ]
        return [[int(n) for i, n in enumerate(count) if i not in set(places)] for count in counts]

    one, other = rows(before), rows(after)
    pad = lambda a, b: a + [0] * (len(b) - len(a))  # noqa: E731
    return len(one) != len(other) or any(pad(a, b) != pad(b, a) for a, b in zip(one, other, strict=False))


@contextmanager
def using_source(objective: Objective, source: BatchSource) -> Iterator[None]:
    """Let an objective take its batches from another source inside."""
    own, objective.source = objective.source, source
    try:
        yield
    finally:
        objective.source = own
