"""The gradient of a query at a given state: where a walk starts."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.dtypes import tensors_made_in
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.kernels.attention import ATTENTION
from lightning_sgdinf.kernels.channels_last import Twins
from lightning_sgdinf.kernels.intercept import Interceptor
from lightning_sgdinf.kernels.running_statistics import RunningStatistics
from lightning_sgdinf.query import Query, ValidationData
from lightning_sgdinf.replay.borrowed_module import set_modes
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.state import ModelState


class Context(Protocol):
    """Makes the precision context of a validation step."""

    def __call__(self) -> AbstractContextManager[Any]:
        """A fresh context manager."""
        ...


def value_of(
    objective: Objective, state: ModelState, query: Query, data: ValidationData, context: Context = nullcontext
) -> Tensor:
    """The queries' values at a state, float64 ``[Q]``."""
    return _evaluate(objective, state, query, data, context, gradient=False)[0]


def gradient_of(
    objective: Objective,
    state: ModelState,
    query: Query,
    data: ValidationData,
    context: Context = nullcontext,
    *,
    averaged: Collection[str] = (),
) -> tuple[Tensor, Adjoint]:
    """The queries' values and their adjoint at a state.

    Args:
        objective: The opened model.
        state: Where to evaluate, with running averages in the place of what is averaged.
        query: What is asked.
        data: Validation data.
        context: Precision.
        averaged: Names of what is averaged: all parameters, and buffers or not. Their adjoint is the average's.

    Returns:
        Values, float64 ``[Q]``, and the `Adjoint`.

    Raises:
        ConfigurationError: If there are no validation examples, or the query does not depend on the parameters.
        NonFiniteError: If a value or a gradient is not finite.
    """
    values, params, buffers = _evaluate(objective, state, query, data, context, gradient=True)
    names = query.names(data)
    flat = bool(len(params)) and not params.any(dim=1).all()
    if flat:
        where = [n for n, row in zip(names, params, strict=True) if not row.any()]
        raise ConfigurationError(
            f"the query {where[0]!r} does not depend on the trained parameters (its gradient is zero), so no example "
            "influences it"
        )
    if not bool(torch.isfinite(params).all()):
        raise NonFiniteError(f"the gradient of the query {names[0]!r} is not finite at the final model")
    if averaged:
        of_average = {n: b for n, b in buffers.items() if n in averaged}
        last = {n: b for n, b in buffers.items() if n not in averaged}
        return values, Adjoint(
            params=torch.zeros_like(params), buffers=last, average=params, average_buffers=of_average
        )
    return values, Adjoint(params=params, buffers=buffers)


def _evaluate(
    objective: Objective, state: ModelState, query: Query, data: ValidationData, context: Context, *, gradient: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    if data.size == 0:
        raise ConfigurationError(
            "the validation set is empty; a query needs validation examples (pass val_dataloaders)"
        )
    vector = objective.vector
    count = len(query.names(data))
    dtype, device = objective.parameters[0].dtype, objective.host.device
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values, weights = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    params = torch.zeros(count if gradient else 0, vector.size, dtype=wide, device=device)
    buffers: dict[str, Tensor] = {}
    objective.load(state)
    set_modes(objective.module, [n for n, _ in objective.module.named_modules()])
    watch = RunningStatistics(objective.module, Twins())
    try:
        handling = Interceptor({**ATTENTION, **watch.handlers()})
        own = tensors_made_in(objective.dtype)
        with random_state.preserved(), torch.set_grad_enabled(True), context(), own, handling:
            for number, weight, term in query.terms(objective.module, data):
                values[number] += weight * float(term.detach())
                weights[number] += weight
                if gradient:
                    _add_gradient(objective, watch, term, weight, params[number], buffers, number, count)
                del term  # with its graph, before the next one is made
    finally:
        objective.forget_modes()
    if bool((weights == 0).any()):
        raise ConfigurationError(
            "a query got no validation examples; check the validation loader and the ids asked for"
        )
    values /= weights
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"a query is {values.tolist()} at the final model; scores need a finite value")
    if gradient:
        params /= weights.to(device, wide)[:, None]
        buffers = {n: b / weights.to(b.device, b.dtype).view(-1, *[1] * (b.ndim - 1)) for n, b in buffers.items()}
    return values, params, buffers


def _add_gradient(
    objective: Objective,
    watch: RunningStatistics,
    term: Tensor,
    weight: float,
    row: Tensor,
    buffers: dict[str, Tensor],
    number: int,
    count: int,
) -> None:
    leaves = dict(watch.leaves)
    if not term.requires_grad:
        return
    found = torch.autograd.grad(term, [*objective.parameters, *leaves.values()], allow_unused=True, retain_graph=True)
    own = [torch.zeros_like(p) if g is None else g for p, g in zip(objective.parameters, found, strict=False)]
    row.add_(objective.vector.join(own), alpha=weight)
    for (name, leaf), value in zip(leaves.items(), found[len(own) :], strict=True):
        if value is not None:
            buffers.setdefault(name, torch.zeros(count, *leaf.shape, dtype=leaf.dtype, device=leaf.device))
            buffers[name][number] += weight * value
