"""Metrics whose value is part of the loss: they compute in replay, while those that only log are silent.

Which are which is found by taking one step with all of them at work and with all of them silent: only where the loss
differs does one of them matter, and then each is asked by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_sgdinf import random_state
from lightning_sgdinf.log import Step
from lightning_sgdinf.replay.training_step import TrainingStep
from lightning_sgdinf.state import ModelState

_OURS = ("forward", "update", "compute")


def wake_loss_metrics(objective: TrainingStep, final: Callable[[], ModelState], step: Step) -> None:
    """Let the metrics compute that the loss of a step is made of.

    Each gives the value of what it is given between two results, without what it saw before; the module's own are not
    written to.

    Args:
        objective: The opened model, its metrics silent.
        final: Reads the state to look at.
        step: A recorded step.
    """
    metrics = [m for m in objective.module.modules() if isinstance(m, (Metric, MetricCollection))]
    inner = {id(part) for metric in metrics for part in list(metric.modules())[1:]}  # metrics do not compare by ==
    outer = [m for m in metrics if id(m) not in inner]
    if not outer or not step.micro_batches:
        return
    state = final()
    silent = [{name: vars(m)[name] for name in _OURS} for m in outer]
    wakeful = [_functions(m) for m in outer]

    def loss(awake: list[bool]) -> Tensor | None:
        for metric, on, loud, quiet in zip(outer, awake, wakeful, silent, strict=True):
            vars(metric).update(loud if on else quiet)
        objective.load(state)
        micro = step.micro_batches[-1]
        try:
            batch = objective.batch(step, micro)
            random_state.restore(micro.stepped_with)
            return objective.run(step, micro.batch_idx, batch).loss.detach().clone()
        except Exception:  # a metric may not compute here, or the step not without it
            return None

    with random_state.preserved():
        every, none = [True] * len(outer), [False] * len(outer)
        expected, quiet = loss(every), loss(none)
        awake = none
        if expected is not None and (quiet is None or not torch.equal(quiet, expected)):
            others = [loss([n != number for n in range(len(outer))]) for number in range(len(outer))]
            awake = [other is None or not torch.equal(other, expected) for other in others]
            kinds = {type(m) for m, on in zip(outer, awake, strict=True) if on}
            awake = [on or type(m) in kinds for m, on in zip(outer, awake, strict=True)]  # validation has its own
        loss(awake)


def _copy(metric: Any) -> Any:
    """Return a copy without graphs: what a metric keeps of training may have one, and cannot be copied with it."""
    with ExitStack() as undo:
        for part in metric.modules():
            attributes = vars(part)
            for name, value in list(attributes.items()):
                plain = _without_graph(value)
                if plain is not value:
                    undo.callback(attributes.__setitem__, name, value)
                    attributes[name] = plain
        return metric.clone()


def _without_graph(value: Any) -> Any:
    if isinstance(value, Tensor) and value.grad_fn is not None:
        return value.detach()
    if isinstance(value, list) and any(isinstance(v, Tensor) and v.grad_fn is not None for v in value):
        return [v.detach() if isinstance(v, Tensor) else v for v in value]
    return value


@contextmanager
def _made_in_default_type(metric: Any) -> Iterator[None]:
    """Let the states of a metric begin in the floating-point type of the step: in float64 a float32 sum would round."""
    parts = [part for part in metric.modules() if isinstance(part, Metric)]
    before = [dict(part._defaults) for part in parts]
    dtype = torch.get_default_dtype()
    try:
        for part in parts:
            for name, value in part._defaults.items():
                if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64):
                    part._defaults[name] = value.to(dtype)
        yield
    finally:
        for part, defaults in zip(parts, before, strict=True):
            part._defaults.update(defaults)


def _functions(metric: Any) -> dict[str, Any]:
    """Return the functions of a metric that computes, on a copy that forgets after every result."""
    kept = {name: vars(metric).pop(name) for name in _OURS}
    own = metric if any(True for _ in metric.parameters()) else _copy(metric)
    vars(metric).update(kept)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _made_in_default_type(own):
            own.reset()
            value = type(own).forward(own, *args, **kwargs)
        own.reset()
        return value

    def update(*args: Any, **kwargs: Any) -> None:
        with torch.enable_grad(), _made_in_default_type(own):
            if not getattr(own, "_update_called", True):
                own.reset()
            own._enable_grad = True  # as in a metric's own forward pass
            own.update(*args, **kwargs)

    def compute() -> Any:
        value = own.compute()
        own.reset()
        return value

    forward.is_awake = True  # type: ignore[attr-defined]
    return {"forward": forward, "update": update, "compute": compute}
