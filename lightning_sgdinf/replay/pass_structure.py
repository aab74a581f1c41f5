"""The structure of a pass with example weights: where they enter, and what lies beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_sgdinf.replay.row_owners import EVERYBODY


@dataclass(frozen=True, slots=True)
class Paths:
    """The operations between a loss and the parameters that no weight lies on.

    Attributes:
        operations: How many operations, by name, sorted.
        leaves: How many parameters are reached.
    """

    operations: tuple[str, ...] = ()
    leaves: int = 0


@dataclass(frozen=True, slots=True)
class PassStructure:
    """The part of a pass that the outcome of an audit depends on.

    Attributes:
        calls: Name of each loss function that carries weights, in order, and how many rows it has per example;
            ``None`` if not as many for each.
        paths: From the loss to the parameters, without weights.
        shared: True if some rows are no example's, as those of a penalty.
        functions: Names of torch's functions that the pass called, as far as they were looked at. Structures that
            differ in these alone are equal: no audit depends on them.
    """

    calls: tuple[tuple[str, int | None], ...]
    paths: Paths
    shared: bool
    functions: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def has_unweighted_terms(self) -> bool:
        """Return true if slopes of examples need not add up to the gradient."""
        return self.shared or self.paths.leaves > 0

    @classmethod
    def of(
        cls,
        taps: Sequence[str],
        owners: Sequence[Tensor],
        loss: Tensor,
        count: int,
        functions: frozenset[str] = frozenset(),
    ) -> PassStructure:
        """Return the structure of a pass with weights.

        Args:
            taps: Loss functions that carry them.
            owners: Of the rows of each of these.
            loss: What came of it.
            count: ``B``.
            functions: Names of torch's functions that it called.
        """
        rows = [owner.numel() for owner in owners]
        each = (r // count if count and r % count == 0 else None for r in rows)
        shared = any(bool((owner == EVERYBODY).any()) for owner in owners)
        by_mean = tuple(taps) == ("per_example_loss",)
        return cls(
            tuple(zip(taps, each, strict=True)), Paths() if by_mean else paths_beyond_taps(loss), shared, functions
        )


def paths_beyond_taps(loss: Tensor) -> Paths:
    """Follow autograd's graph from a loss to where example weights enter."""
    names = sorted(node.name() for node in nodes_beyond_taps(loss))
    return Paths(tuple(names), sum(name.endswith("AccumulateGrad") for name in names))


def nodes_beyond_taps(loss: Tensor) -> list[Any]:
    """Return the nodes of autograd's graph between a loss and where example weights enter."""
    nodes: dict[Any, None] = {}
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in nodes or node.name().startswith(("_WeightRows", "_Hold")):
            continue
        nodes[node] = None
        waiting.extend(next_node for next_node, _ in node.next_functions)
    return list(nodes)
