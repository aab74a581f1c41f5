"""The trust check of a walk: sampled examples really left out of a re-run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_sgdinf.certificate import Trust
from lightning_sgdinf.checks.plan import Plan
from lightning_sgdinf.checks.rerun import Rerun, strongest
from lightning_sgdinf.log import Step


def check_trust(rerun: Rerun, scores: Tensor, plan: Plan, ids: Tensor, column: int = 0) -> Trust | None:
    """Leave sampled examples out of the window and compare.

    Half of them are those with the largest scores, half are drawn at random from the window's.

    Args:
        rerun: The window.
        scores: What the walk has accumulated at the window's start, ``[N, Q]``.
        plan: How many examples.
        ids: Examples that occur in the window.
        column: Which query.

    Returns:
        The result; ``None`` if the window has fewer than three examples.
    """
    chosen = strongest(scores[:, column], plan.trust_examples // 2)
    generator = torch.Generator().manual_seed(plan.seed)
    others = [int(i) for i in ids[torch.randperm(len(ids), generator=generator)] if int(i) not in chosen]
    chosen = chosen + others[: plan.trust_examples - len(chosen)]
    if len(chosen) < 3:
        return None
    base = rerun.value({}, column)
    measured = [rerun.value({j: 0.0}, column) - base for j in chosen]
    predicted = [float(scores[j, column]) for j in chosen]
    correlation = _pearson(predicted, measured)
    low, high = _fisher_interval(correlation, len(chosen))
    return Trust(
        first_step=rerun.first_step,
        example_ids=tuple(chosen),
        predicted=tuple(predicted),
        measured=tuple(measured),
        correlation=correlation,
        low=low,
        high=high,
    )


def window_examples(steps: Iterator[Step]) -> Tensor:
    """Return the ids of the examples that occur in some steps, each once."""
    ids = [torch.tensor(s.example_ids) for s in steps]
    return torch.unique(torch.cat(ids)) if ids else torch.empty(0, dtype=torch.int64)


def _pearson(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    size = x.norm() * y.norm()
    return float((x @ y) / size) if size > 0 else float("nan")


def _fisher_interval(correlation: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a correlation from ``count`` pairs; the whole range below four."""
    if count < 4 or not abs(correlation) < 1:
        return (-1.0, 1.0) if count < 4 else (correlation, correlation)
    z, half = math.atanh(correlation), 1.959963984540054 / math.sqrt(count - 3)
    return math.tanh(z - half), math.tanh(z + half)
