"""The search for elements of a run's gradient that are zero but for rounding, by comparison with float64."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.log import Step
from lightning_sgdinf.replay.objective import Objective, open_objective
from lightning_sgdinf.replay.opened import OpenedRun
from lightning_sgdinf.replay.vanishing import VanishingGradient
from lightning_sgdinf.state import ModelState

LOOKS = 3
"""States at which gradients are compared."""
VANISHED = 1e-11
"""Part of the largest element of the gradient in float64 below which nothing is left of one."""
ROUNDED = 1e-3
"""Part of an element in float32 that is right at most, where the rest is rounding."""


def find_vanishing(run: OpenedRun) -> VanishingGradient:
    """Look for the elements of a run's gradient that are zero but for rounding.

    Args:
        run: Computed in float32; of others nothing is looked for.

    Returns:
        They; none if the step cannot be taken in float64.
    """
    if {p.dtype for p in run.objective.parameters} != {torch.float32}:
        return VanishingGradient()
    looks = [(run.log.state(t), run.log.step(t)) for t in _stored(run)]
    with random_state.preserved():
        narrow = [_gradient(run.objective, *look) for look in looks]
        try:
            with _in_float64(run) as wide:
                known = [_gradient(wide, *look) for look in looks]
        except (SgdInfluenceError, RuntimeError, ValueError, TypeError):
            return VanishingGradient()  # a step that insists on its own precision
    sizes = [max((float(g.abs().max()) for g in grads if g is not None and g.numel()), default=0.0) for grads in known]
    vanishing: dict[int, Tensor] = {}
    for place in range(len(run.objective.parameters)):
        pairs = [(a[place], b[place], size) for a, b, size in zip(narrow, known, sizes, strict=True)]
        chosen = _zero_but_for_rounding(
            [(g, right, size) for g, right, size in pairs if g is not None and right is not None]
        )
        if chosen is not None and bool(chosen.any()):
            vanishing[place] = chosen
    return VanishingGradient(vanishing)


def _zero_but_for_rounding(looks: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor | None:
    """Return the elements of one parameter that are computed and come out as nothing in float64.

    Args:
        looks: Gradient in float32 and in float64, and the largest element of the whole gradient there, by state.
    """
    if not looks:
        return None
    gone = [
        (right.abs() <= VANISHED * size) & ((g == 0) | (right.abs() <= ROUNDED * g.abs().to(right)))
        for g, right, size in looks
    ]
    computed = [(g != 0) | (right != 0) for g, right, _ in looks]  # not a row that no example of these batches uses
    return torch.stack(gone).all(0) & torch.stack(computed).any(0)


def _stored(run: OpenedRun) -> list[int]:
    """Return steps from all over the run that have a loss and whose states are stored."""
    last = len(run.log)
    stored = [int(t) for t in run.log.state_indices if t < last and not run.log.step(int(t)).first_pass.without_loss]
    places = {round(k * (len(stored) - 1) / (LOOKS - 1)) for k in range(LOOKS)} if stored else set()
    return [stored[place] for place in sorted(places)]


def _in_float64(run: OpenedRun) -> AbstractContextManager[Objective]:
    own = run.objective
    settings: dict[str, Any] = {
        "dtype": torch.float64,
        "widened": True,
        "tap": own.tap,
        "per_example_loss": own.per_example_loss,
        "rows": own.rows,
    }
    return open_objective(own.module, run.log.header, own.source, own.host, **settings)


def _gradient(objective: Objective, state: ModelState, step: Step) -> list[Tensor | None]:
    """Return the gradient of the first pass of a step, in parts."""
    objective.load(state)
    micro = step.first_pass
    loss = objective.trace(step, micro, objective.batch(step, micro)).loss
    return [None if g is None else g.detach() for g in objective.gradient(loss)]
