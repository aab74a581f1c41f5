"""A query of the final model, bound to the data it is computed from: its value and its gradient at any state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.dtypes import cast_floats, tensors_made_in
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.kernels import (
    ATTENTION,
    HeldConstants,
    Interceptor,
    RunningStatistics,
    Twins,
    lookup_handlers,
    plain_checkpoints,
)
from lightning_sgdinf.query import Query, ValidationData, require_query
from lightning_sgdinf.replay import Objective, OpenedRun, validation_pass
from lightning_sgdinf.replay.borrowed_module import lasting_tensors
from lightning_sgdinf.replay.moving_buffers import differentiable_buffers, moved_in_log
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundQuery:
    """``Q`` scalars of a model, ready to be computed.

    Attributes:
        query: What is asked.
        data: Validation data, brought to where the model is.
        objective: The opened model.
        context: Makes the precision context of a validation step.
        averaged: Names of what the run's final model is a running average of; empty if it is none.
    """

    query: Query
    data: ValidationData
    objective: Objective
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    averaged: Collection[str] = ()

    @classmethod
    def of(cls, run: OpenedRun, query: Query, *, dtype: torch.dtype | None = None) -> BoundQuery:
        """Bind a query to a run and its validation data.

        Args:
            run: The recorded run.
            query: What is asked.
            dtype: Floating-point precision to compute in, if not the recorded one.

        Raises:
            ConfigurationError: If there is not one validation loader to ask, or its data set has no length.
        """
        require_query(query)
        host, loader, number = run.host, run.validation_loader, run.val_loader

        def transfer(batch: Any) -> Any:
            batch = host.transfer(host.convert_input(batch), number or 0)
            return batch if dtype is None else cast_floats(batch, dtype)

        return cls(
            query=query,
            data=ValidationData(loader=loader, transfer=transfer, dataloader_idx=number),
            objective=run.objective,
            context=host.validation_context,
            averaged=run.log.average or (),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return a name per scalar."""
        return self.query.names(self.data)

    def value(self, state: ModelState) -> Tensor:
        """Return the queries' values at a state, float64 ``[Q]``.

        Raises:
            ConfigurationError: If there are no validation examples.
            NonFiniteError: If a value is not finite.
        """
        try:
            with saved_tensors_hooks(lambda _: None, _expect_no_derivative):  # as large as all layers' outputs
                return self._evaluate(state, gradient=False)[0]
        except _QueryDifferentiates:
            return self._evaluate(state, gradient=False)[0]

    def gradient(self, state: ModelState) -> tuple[Tensor, Adjoint]:
        """Return the queries' values, float64 ``[Q]``, and their adjoint at a state.

        Raises:
            ConfigurationError: If there are no validation examples, or a query does not depend on the parameters.
            NonFiniteError: If a value or a gradient is not finite.
        """
        values, params, buffers = self._evaluate(state, gradient=True)
        names = self.names
        if bool(len(params)) and not params.any(dim=1).all():
            where = [n for n, row in zip(names, params, strict=True) if not row.any()]
            raise ConfigurationError(
                f"the query {where[0]!r} does not depend on the trained parameters (its gradient is zero), so no "
                "example influences it"
            )
        if not bool(torch.isfinite(params).all()):
            raise NonFiniteError(f"the gradient of the query {names[0]!r} is not finite at the final model")
        return values, Adjoint(params=params, buffers=buffers)

    def at_model(self, run: OpenedRun) -> tuple[Tensor, Adjoint]:
        """Return `gradient` at a run's final model, computed once."""
        return run.once((self, "gradient"), lambda: self._at_model(run))

    def _at_model(self, run: OpenedRun, model: ModelState | None = None) -> tuple[Tensor, Adjoint]:
        run.objective.passes.moving |= moved_in_log(run.log, run.objective.module)
        return self.gradient(run.model if model is None else model)

    def end(self, run: OpenedRun, model: ModelState | None = None) -> tuple[Tensor, Adjoint]:
        """Return values and adjoint at the end of a run, where a walk starts.

        Where the final model is a running average, the adjoint is that average's. It is not kept: a walk leaves it.

        Args:
            run: The run.
            model: The model that it ends with; the recorded one if ``None``.
        """
        values, at_model = self._at_model(run, model)
        if not self.averaged:
            return values, at_model
        buffers = at_model.buffers
        return values, Adjoint(
            params=torch.zeros_like(at_model.params),
            buffers={n: b for n, b in buffers.items() if n not in self.averaged},
            average=at_model.params,
            average_buffers={n: b for n, b in buffers.items() if n in self.averaged},
        )

    def in_float64(self, objective: Objective) -> BoundQuery:
        """Return the same query of the same model, opened in float64.

        Args:
            objective: The model, opened in float64.
        """
        bring = self.data.transfer
        wide = replace(self.data, transfer=lambda batch: cast_floats(bring(batch), torch.float64))
        return replace(self, data=wide, objective=objective, context=nullcontext)

    def _evaluate(self, state: ModelState, *, gradient: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if self.data.size == 0:
            raise ConfigurationError(
                "the validation set is empty; a query needs validation examples (pass val_dataloaders)"
            )
        objective, count = self.objective, len(self.names)
        dtype, device = objective.parameters[0].dtype, objective.host.device
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values, weights = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        params = torch.zeros(count if gradient else 0, objective.vector.size, dtype=wide, device=device)
        buffers: dict[str, Tensor] = {}
        objective.load(state)
        watch = RunningStatistics(objective.module, Twins())
        held = HeldConstants(objective.passes.phase, lambda: lasting_tensors(objective.module))
        lookups = lookup_handlers(objective.passes.phase, objective.passes.sparse_rows)
        handling = Interceptor({**ATTENTION, **lookups, **watch.handlers(), **held.handlers()}, held)
        own = tensors_made_in(objective.dtype)
        moving = differentiable_buffers(objective.module, objective.passes.moving if gradient else (), held)
        with (
            validation_pass(objective),
            random_state.preserved(),
            torch.enable_grad(),
            self.context(),
            own,
            moving as moved,
            plain_checkpoints(),
            handling,
        ):
            leaves = {name: buffer.before for name, buffer in moved.items()}
            for number, weight, term in self.query.terms(objective.module, self.data):
                values[number] += weight * float(term.detach())
                weights[number] += weight
                if gradient:
                    read = {**leaves, **watch.leaves}
                    _add_gradient(objective, read, term, weight, params[number], buffers, number, count)
                del term  # with its graph, before the next one is made
        _expect_same_parameters(objective)
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


class _QueryDifferentiates(Exception):
    """A query takes a derivative on its way to its value."""


def _expect_no_derivative(_: None) -> Tensor:
    raise _QueryDifferentiates


def _expect_same_parameters(objective: Objective) -> None:
    """Make sure that a query left the model the parameters that it was asked of.

    Raises:
        ConfigurationError: It put another one in the place of one; names it.
    """
    present = dict(objective.module.named_parameters())
    for name, parameter in zip(objective.vector.names, objective.parameters, strict=True):
        if present.get(name) is not parameter:
            raise ConfigurationError(
                f"the query replaced the parameter {name!r} of the model. Expected a function that "
                "leaves the model as it is: work on a copy (copy.deepcopy), or use torch.func.functional_call"
            )


def _add_gradient(
    objective: Objective,
    leaves: Mapping[str, Tensor],
    term: Tensor,
    weight: float,
    row: Tensor,
    buffers: dict[str, Tensor],
    number: int,
    count: int,
) -> None:
    """Add the gradient of one query's term, times its weight, to that query's row and buffer adjoints."""
    parameters = objective.parameters
    if not term.requires_grad:
        return
    grads = torch.autograd.grad(term, [*parameters, *leaves.values()], allow_unused=True, retain_graph=True)
    row.add_(objective.vector.join_gradients(grads[: len(parameters)], parameters), alpha=weight)
    for (name, leaf), value in zip(leaves.items(), grads[len(parameters) :], strict=True):
        if value is not None:
            buffers.setdefault(name, torch.zeros(count, *leaf.shape, dtype=leaf.dtype, device=leaf.device))
            buffers[name][number] += weight * value
