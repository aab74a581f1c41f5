"""The length of a step along a line of models: the shortest one that does it, without a learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState

BISECTIONS = 6


def shortest(
    stops: Callable[[float], bool], *, low: float, high: float, growth: float, most: float, bisections: int = BISECTIONS
) -> float | None:
    """Return a short factor at which a line stops; ``None`` if it does not up to the largest.

    The upper end grows until it stops; bisections then halve the interval. Where stopping is not monotonic, this is one
    of the crossings, not always the first.

    Args:
        stops: True where the line has gone far enough.
        low: A factor that is not far enough, at least 0.
        high: The first factor to try, above ``low``.
        growth: By what the upper end grows, above 1.
        most: The largest factor to try.
        bisections: How often the interval is halved.
    """
    while not stops(high):
        low, high = high, high * growth
        if high > most:
            return None
    for _ in range(bisections):
        middle = (low + high) / 2
        low, high = (low, middle) if stops(middle) else (middle, high)
    return high


def moved(state: ModelState, step: dict[str, Tensor], factor: float) -> ModelState:
    """Return the model with ``factor`` times a step added to its parameters; buffers stay."""
    params = {n: v + factor * step[n] if n in step else v.clone() for n, v in state.params.items()}
    return ModelState(params=params, buffers={n: v.clone() for n, v in state.buffers.items()})


def on_device(run: OpenedRun, state: ModelState) -> ModelState:
    """Return a state where the run computes: records are read to the CPU."""
    return state.map(lambda v: v.to(run.host.device))


def extrapolated(state: ModelState, other: ModelState, factor: float, positive: frozenset[str]) -> ModelState:
    """Return ``state + factor (other - state)``: the first model at factor 0, the other at 1, beyond it above that.

    Args:
        state: The model to start from.
        other: The model that gives the direction.
        factor: How far to go.
        positive: Buffers that must stay positive; they go on geometrically, ``state (other / state)^factor``, which is
            the same to first order. Buffers that are no floating-point numbers are the other model's.
    """

    def buffer(name: str, value: Tensor) -> Tensor:
        to = other.buffers[name]
        if not value.is_floating_point():
            return to.clone()
        if name in positive and bool((value > 0).all()) and bool((to > 0).all()):
            return value * (to / value) ** factor
        return value + factor * (to - value)

    if factor == 1:  # to the bit
        return replace(other, optimizer={}).clone()
    params = {n: v + factor * (other.params[n] - v) for n, v in state.params.items()}
    moved_on = replace(state, params=params, buffers={n: buffer(n, v) for n, v in state.buffers.items()}, optimizer={})
    return moved_on.map(torch.Tensor.detach)


def running_variances(module: nn.Module) -> frozenset[str]:
    """Return the names of the buffers in which batch normalisation keeps variances."""
    return frozenset(
        f"{name}.running_var" if name else "running_var"
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_var is not None
    )
