"""The difference that a selection makes, averaged over the steps of the last epoch.

Where training is noisy, the difference at one step is that of two noisy models. Its mean over an epoch has less of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import CounterfactualRun, Edit, OpenedRun, first_step_of, stored_at_or_before
from lightning_sgdinf.state import ModelState


def with_mean_difference(
    run: OpenedRun, again: CounterfactualRun, *, weights: Tensor | None, edit: Edit | None
) -> ModelState:
    r"""Take the steps again, and return the final model moved by the mean difference of the last epoch's steps.

    Of a difference that grows evenly over ``n`` steps, the mean over the last ``m`` is :math:`1 - (m - 1) / 2n` of what
    it is at the end, by which it is divided: so it is the difference at the end but for noise.

    Args:
        run: The recorded run.
        again: Its steps, at least those of the last epoch.
        weights: As for `CounterfactualRun.run`.
        edit: Likewise.

    Returns:
        The final recorded model with moved parameters, and the buffers that the steps led to.

    Raises:
        ConfigurationError: The run's final model has averaged weights.
    """
    if run.log.average is not None:
        raise ConfigurationError(
            "difference='mean': expected a run whose final model is its last state, got one with averaged weights, "
            "whose difference is a mean already; take difference='end'"
        )
    first = first_step_of(run.log, 1)
    course = again.take(again.start, again.first_step, first, weights=weights, edit=edit)
    total: dict[str, Tensor] = {}
    for step in range(first, again.last_step):
        course = again.take(course, step, step + 1, weights=weights, edit=edit)
        _add(total, course.state.params, 1)
    for params in _recorded(run, again, first):
        _add(total, params, -1)
    taken, averaged = again.last_step - again.first_step, again.last_step - first
    scale = averaged * (1 - (averaged - 1) / (2 * taken))
    moved = {n: (v.double() + total[n].to(v.device) / scale).to(v.dtype) for n, v in run.model.params.items()}
    return replace(course.state, params=moved, optimizer={})


def _recorded(run: OpenedRun, again: CounterfactualRun, first: int) -> Iterator[Mapping[str, Tensor]]:
    """Yield the recorded parameters after each step from one on: as they were kept, or taken again if some were not."""
    after = range(first + 1, again.last_step + 1)
    if set(after) <= {int(t) for t in run.log.state_indices}:
        yield from (run.log.state(t).params for t in reversed(after))  # the order in which a record is fast
        return
    stored = stored_at_or_before(run.log, first)
    course = again.take(replace(again.start, state=run.log.state(stored)), stored, first)
    for step in range(first, again.last_step):
        course = again.take(course, step, step + 1)
        yield course.state.params


def _add(total: dict[str, Tensor], params: Mapping[str, Tensor], sign: int) -> None:
    for name, value in params.items():
        part = sign * value.detach().to("cpu", torch.float64)
        total[name] = total[name] + part if name in total else part
