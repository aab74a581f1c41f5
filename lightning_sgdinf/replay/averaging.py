"""The averaged weights of a run that is trained again.

A weight-averaging callback did ``average <- a_t average + b_t params`` after some steps, so the average at the end is
linear in what the steps fed it:

    average' = average + sum_t c_t (params'[t+1] - params[t+1]),    c_t = b_t prod_{s > t} a_s

with ``params`` of the recorded steps and ``params'`` of those taken again. The average at the first of them is not
needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.state import ModelState


def run_and_average(
    retracer: Replayer,
    log: Trajectory,
    state: ModelState,
    first_step: int,
    *,
    weights: Tensor | None = None,
    relabel: Mapping[int, int] | None = None,
) -> tuple[ModelState, dict[str, Tensor]]:
    """Take the recorded steps from ``first_step`` to the end.

    Args:
        retracer: Takes recorded steps again.
        log: The record.
        state: State ``first_step``.
        first_step: Where to start.
        weights: As for `Replayer.run`.
        relabel: As for `Replayer.run`.

    Returns:
        The last state, and the sum of ``c_t params[t+1]``, float64, by name; empty if the steps fed nothing.
    """
    fed: dict[str, Tensor] = {}
    for step in log.steps(first_step, len(log)):
        state = retracer.advance(state, step, weights=weights, relabel=relabel)
        fed = feed(fed, {**state.params, **state.buffers}, step)
    return state, fed


def feed(fed: Mapping[str, Tensor], now: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
    """What the steps so far fed the average, after one more: ``a fed + b now``, float64, by name."""
    if step.average is None:
        return dict(fed)
    a, b = step.average
    floats = {n: v.detach().double() for n, v in now.items() if v.is_floating_point()}
    return {n: b * v + (a * fed[n] if n in fed else 0.0) for n, v in floats.items()}


def with_average(
    end: ModelState, average: Mapping[str, Tensor], fed: Mapping[str, Tensor], recorded: Mapping[str, Tensor]
) -> ModelState:
    """The final state with averaged values in place of the last ones.

    Args:
        end: The last state of the steps taken again.
        average: The recorded average.
        fed: What these steps fed it, from `run_and_average`.
        recorded: What the recorded steps fed it.

    Returns:
        The state; where both fed the same, the recorded average bit for bit.
    """

    def averaged(name: str, value: Tensor) -> Tensor:
        if name not in average:
            return value
        base = average[name].to(value.device)
        if name not in fed or not base.is_floating_point():
            return base.clone()
        return (base.double() + (fed[name] - recorded[name])).to(value.dtype)

    return replace(
        end,
        params={n: averaged(n, v) for n, v in end.params.items()},
        buffers={n: averaged(n, v) for n, v in end.buffers.items()},
    )
